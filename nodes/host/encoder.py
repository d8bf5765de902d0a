"""The engine's Qwen3 encoder as ComfyUI's CLIP."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.text_encoders
import torch
import transformers

from ...errors import KleinError
from ...model_loaders.formats.identify import ENCODER_NAMES
from ...model_loaders.qwen3.encoder import EncoderFile, Qwen3Encoder, read_encoder
from ...model_loaders.qwen3.prompt import GOLDEN, LENGTH, PAD, check_prompt, cut, load_tokenizer, tokenize, window
from ...pictures.report import read_as_text
from ...store.stamp import source
from .compat import clip_options, note_dtypes
from .conditioning import with_ours
from .kept import patches_of
from .operations import encoder_operations, native_layers, native_tensors
from .packed import pack, packed_layers
from .store import key as key_of
from .store import store

BUNDLED = Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"  # the same byte pairs as Qwen3's

CAST = "manual_cast_dtype"  # an object that newer hosts replace in every CLIP


def load_clip(path: Path, device: str = "default", disable_dynamic: bool = False):
    """A CLIP from a file or Hugging Face folder, whose weights are read when a prompt first needs them. Raises KleinError
    when it is not Qwen3.

    disable_dynamic: as in the host's own loaders, for callers that patch weights in place.
    """
    file = read_encoder(path)
    folder = tokenizer_folder(path)
    tokenizer = KleinTokenizer(load_tokenizer(folder), clip_name(file))
    if file.sizes.vocabulary > max(GOLDEN) and tokenize(tokenizer.tokenizer, "hi") != GOLDEN:
        raise KleinError(
            f"The tokenizer in {folder} does not split text as Qwen3's does, which {file.name} was trained with: remove it from "
            f"there, or put the tokenizer folder of the model there."
        )
    if tokenizer.size > file.sizes.vocabulary:
        raise KleinError(
            f"The tokenizer for {file.name} has ids up to {tokenizer.size - 1} but the encoder embeds {file.sizes.vocabulary} "
            f"tokens: put the tokenizer folder of that encoder beside it."
        )
    cpu = torch.device("cpu")
    load_device = cpu if device == "cpu" else comfy.model_management.text_encoder_device()
    offload_device = cpu if device == "cpu" else comfy.model_management.text_encoder_offload_device()
    compute_dtype = activations(file.dtype, load_device)

    def build(**_):
        return HostedEncoder(file, tokenizer.pad, load_device, compute_dtype)

    target = SimpleNamespace(params={}, clip=build, tokenizer=lambda **_: tokenizer)
    options = {
        "load_device": load_device,
        "offload_device": offload_device,
        "initial_device": torch.device("meta"),  # nowhere yet: hosts without a GPU would load it at once
        "dtype": file.dtype,
    }
    # A host that streams weights from the file would add patches to packed bytes.
    plain = disable_dynamic or bool(packed_layers(file.plan.quantised))
    clip = comfy.sd.CLIP(target, model_options=options, **clip_options(plain))
    clip.cond_stage_model.load_device = clip.patcher.load_device  # the host may have chosen another that can cast
    clip.patcher.cached_patcher_init = (load_patcher, (path, device))
    return clip


def load_patcher(path: Path, device: str = "default", disable_dynamic: bool = False):
    """The patcher of a CLIP, for hosts that load one anew and may take its weights as they are."""
    clip = load_clip(path, device, disable_dynamic)
    clip.cond_stage_model.read_weights()
    return clip.patcher


def tokenizer_folder(path: Path) -> Path:
    """The tokenizer of a checkpoint's own folder (its pipeline's `tokenizer/`, or beside the weights), else the host's."""
    folder = path if path.is_dir() else path.parent
    for candidate in (folder / "tokenizer", folder.parent / "tokenizer", folder):
        if (candidate / "tokenizer.json").is_file() or (candidate / "merges.txt").is_file():
            return candidate
    if BUNDLED.is_dir():
        return BUNDLED
    raise KleinError(
        f"No tokenizer was found for {path.name}, neither beside it nor in ComfyUI: put the folder tokenizer/ of "
        f"FLUX.2-klein-9B (tokenizer.json) beside it."
    )


def activations(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of activations: never float16, in which Qwen3's residual stream overflows."""
    if dtype == torch.float32 or not comfy.model_management.should_use_bf16(device):
        return torch.float32
    return torch.bfloat16


def clip_name(file: EncoderFile) -> str:
    """The host's key for the tokens of this encoder."""
    return ENCODER_NAMES.get(file.sizes.hidden_size, "qwen3").lower().replace("-", "_")


class HostedEncoder(torch.nn.Module):
    """What the host's CLIP drives: tokens in its form in, (B, 512, 3*hidden) out. Weights lie at
    `<clip name>.transformer.model.*`, as in the host's own encoders, so that LoRA keys fit.

    There are none until the host asks for what it asks for first: before each encoding it resets the options, and before
    it moves, patches or saves weights it takes the state dict.
    """

    def __init__(self, file: EncoderFile, pad: int, load_device: torch.device, compute_dtype: torch.dtype):
        super().__init__()
        self.file: EncoderFile | None = file  # until the weights are read
        self.source = source(file.plan.checkpoint.files, file.plan.checkpoint.spans)
        self.clip_name, self.name = clip_name(file), file.name
        self.pad, self.vocabulary = pad, file.sizes.vocabulary
        self.width = 3 * file.sizes.hidden_size
        self.weight_bytes = file.plan.nbytes
        self.load_device, self.compute_dtype = load_device, compute_dtype
        self.dtypes = {file.dtype, *(codec.dtype for codec in native_layers(file.plan.quantised).values())}

    def read_weights(self) -> None:
        """Once; mapped where the file has them as they are needed."""
        file = self.file
        if file is None:
            return
        quantised = native_layers(file.plan.quantised)
        layers = encoder_operations(quantised, self.compute_dtype)
        encoder = Qwen3Encoder(file.sizes, layers, dtype=file.dtype, device=None if quantised else "meta")
        encoder.compute_dtype = self.compute_dtype
        pack(encoder.model, file.plan.quantised, file.name)
        encoder.requires_grad_(False)
        encoder.model.load_state_dict(native_tensors(file.plan.tensors(), quantised), assign=True)
        self.add_module(self.clip_name, torch.nn.ModuleDict({"transformer": encoder.eval()}))
        note_dtypes(self)
        self.file = None
        logging.info(
            f"Klein encoder {file.name}: {len(file.plan.weights)} layers read, {len(file.plan.unused)} left in the file"
        )

    def state_dict(self, *args, **kwargs):
        self.read_weights()
        return super().state_dict(*args, **kwargs)

    def set_clip_options(self, options: dict) -> None:
        self.load_device = options.get("execution_device") or self.load_device

    def reset_clip_options(self) -> None:
        """Layers and pooling of other encoders cannot be set."""
        self.read_weights()

    def encode_token_weights(self, tokens: dict):
        if self.clip_name not in tokens:
            raise KleinError(
                f"The tokens are for {', '.join(tokens)}, expected {self.clip_name}: tokenize the prompt with the CLIP that encodes it."
            )
        batch = [[token[0] for token in row] for row in tokens[self.clip_name]]
        stray = next((i for row in batch for i in row if not (isinstance(i, int) and 0 <= i < self.vocabulary)), None)
        if stray is not None:  # on a GPU an index beyond the embedding ends every later computation too
            raise KleinError(
                f"The tokens hold {stray if isinstance(stray, int) else 'a ' + type(stray).__name__}, expected ids below "
                f"{self.vocabulary}: tokenize the prompt with the CLIP that encodes it."
            )
        lost = max(cut(len(row)) for row in batch)
        if lost:
            logging.warning(f"The prompt is {lost} tokens longer than the {LENGTH} that klein reads: its end was cut off.")
        ids, mask = (part.to(self.load_device) for part in window(batch, self.pad))
        encoder = self.get_submodule(self.clip_name)["transformer"]
        return encoder(ids, mask).float().to(comfy.model_management.intermediate_device()), None

    def generate(self, *args, **kwargs):
        raise KleinError(
            "Klein's encoder holds only the layers that klein reads and cannot write text: use another text model."
        )


class KleinTokenizer:
    """Prompts to tokens in the host's form: {clip name: [[(id, weight 1.0), ...]]}, uncut; weights have no meaning to
    klein and are read as text."""

    def __init__(self, tokenizer, name: str):
        self.tokenizer = tokenizer
        self.name = name
        self.pad = tokenizer.token_to_id(PAD)
        self.size = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> dict:
        ids = tokenize(self.tokenizer, text)
        row = [(token, 1.0, place) for place, token in enumerate(ids)] if return_word_ids else [(token, 1.0) for token in ids]
        return {self.name: [row]}

    def untokenize(self, token_weight_pairs):
        return [(pair, self.tokenizer.id_to_token(pair[0])) for pair in token_weight_pairs]

    def decode(self, token_ids, skip_special_tokens=True):
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        return {}


def encode_prompt(clip, text: str) -> tuple[list, str]:
    """CONDITIONING of a prompt with any CLIP, and a report on its tokens. The prompt's text travels with it. A prompt that
    the store knows needs no encoder. KleinError for what is no text, or too long."""
    check_prompt(text)
    tokens = clip.tokenize(text)
    key = _key(clip, tokens)
    known = store().get(key) if key else None
    values = with_ours({"pooled_output": None}, prompt=text)  # as the host gives them
    if known:
        conditioning = [[known["text"].float().to(comfy.model_management.intermediate_device()), values]]
    else:
        conditioning = clip.encode_from_tokens_scheduled(tokens, add_dict=with_ours({}, prompt=text))
        if key and len(conditioning) == 1 and conditioning[0][1] == values:
            encoder = clip.cond_stage_model
            # the encoder computed in this dtype, and made it float32 for the host
            store().put(key, {"text": conditioning[0][0].to(encoder.compute_dtype)}, f"text by {encoder.name}: {text[:60]}")
    lines = [_said(clip, tokens)] + ["known from before: the encoder was not needed"] * bool(known)
    lines += ["the text is empty: right for a negative, and as a prompt it asks for nothing"] * (not text.strip())
    if isinstance(clip.tokenizer, KleinTokenizer):
        lines += [f"Warning: {sentence}" for sentence in read_as_text(text)]
    return conditioning, "\n".join(lines)


def _key(clip, tokens: dict) -> str | None:
    """Of the conditioning that a CLIP gives for tokens; None where more than its file decides it."""
    encoder, patcher = clip.cond_stage_model, clip.patcher
    if not isinstance(encoder, HostedEncoder) or tokens.keys() != {encoder.clip_name}:
        return None
    hooked = patcher.hook_patches or patcher.forced_hooks or clip.apply_hooks_to_conds or clip.use_clip_schedule
    if hooked or patcher.injections or patcher.object_patches.keys() - {CAST}:
        return None
    patches = patches_of(patcher)
    if patches is None:
        return None
    ids, mask = window([[token[0] for token in row] for row in tokens[encoder.clip_name]], encoder.pad)
    made_with = {
        "dtype": str(encoder.compute_dtype),
        "patches": patches,
        "transformers": transformers.__version__,  # whose layers these are
    }
    return key_of("text", encoder.source, encoder.load_device, **made_with, ids=ids.tolist(), used=mask.sum(1).tolist())


def _said(clip, tokens: dict) -> str:
    counts = [sum(len(row) for row in rows) for rows in tokens.values()]
    used = max(counts, default=0)
    if not isinstance(clip.tokenizer, KleinTokenizer):
        return f"{used} tokens (counted by ComfyUI's own encoder)"
    if cut(used):
        return f"{used} tokens: the last {cut(used)} lie beyond the {LENGTH} that klein reads and were cut off"
    return f"{used} of {LENGTH} tokens, nothing was cut"
