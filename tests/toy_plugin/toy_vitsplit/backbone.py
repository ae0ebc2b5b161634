"""A backbone under a short name."""

from vitsplit.backbone import BackboneSpec

TOY = BackboneSpec(
    name="toy-vit",
    timm_name="vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    family="plain",
    width=192,
    num_layers=12,
    patch_size=16,
    parameters=5_526_720,
    image_size=224,
    activation="gelu",
    license="apache-2.0",
    gated=False,
    note="",
)
