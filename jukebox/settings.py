"""All hyperparameters, from the packages that read them, and the command lines of the programs made of them.

`parse` is what every program calls first. `from_presets` and `from_values` make the same set without a command line.
Nothing here imports torch: help and every mistake in a flag answer at once.
"""

import functools
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from jukebox.autoencoder.hps import AutoencoderHps, UnwrapHps
from jukebox.corpus.hps import CorpusHps
from jukebox.data.hps import AudioHps, DataHps, MakeIdsHps
from jukebox.encoding.hps import EncodeHps
from jukebox.errors import HparamsError
from jukebox.hparams import config_file, flags, help, presets
from jukebox.hparams.flags import Flag, Kind, Value
from jukebox.hparams.resolve import Layer, Resolved, Schema, suggestion, title_of
from jukebox.models.hps import ExportHps
from jukebox.parallel.hps import LaunchHps
from jukebox.parallel.launch import world
from jukebox.prior.hps import ConditionerHps, LabelHps, LyricEncoderHps, PriorHps
from jukebox.sampling.hps import AlignHps, DrawHps, FeaturesHps, FindHps, FlowHps, SampleHps, SongHps
from jukebox.training.hps import EmaHps, EvalHps, Fp16Hps, OptimiserHps, RunHps
from jukebox.vqvae.hps import SpectralHps, VQVAEHps
from jukebox.walkthrough.hps import WalkthroughHps
from jukebox.weights.hps import FetchHps

log = logging.getLogger(__name__)

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Program:
    """One program: what it does, an example of its use, and the sections its flags come from.

    `words` are the keys filled by words that stand without a flag; `hps` is the default of --hps, None where a program
    has no presets; `published` programs accept the retired keys of old commands. `config`: whether flags may stand in a
    file; then also as words `key=value`, and the names in it that stand for others.
    """

    name: str
    about: str
    example: str
    sections: tuple[type, ...]
    words: tuple[str, ...] = ()
    hps: str | None = None
    published: bool = False
    config: Mapping[str, str] | None = None

    @functools.cached_property
    def schema(self) -> Schema:
        return Schema(self.sections)


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "train",
            "Trains a VQ-VAE, with --prior a prior over its codes, or with --model-config an autoencoder.",
            "mpiexec -n 8 python jukebox/train.py --hps=small_vqvae --name=small_vqvae --sample_length=262144 --bs=4"
            " --train --aug_shift --aug_blend --audio_files_dir=music",
            (
                RunHps,
                DataHps,
                AudioHps,
                VQVAEHps,
                SpectralHps,
                AutoencoderHps,
                PriorHps,
                ConditionerHps,
                LabelHps,
                LyricEncoderHps,
                OptimiserHps,
                EmaHps,
                Fp16Hps,
                EvalHps,
                LaunchHps,
            ),
            hps="teeny",
            published=True,
        ),
        Program(
            "sample",
            "Samples songs: from nothing, going on from codes or audio, or upsampling codes.",
            "python jukebox/sample.py --model=1b_lyrics --name=sample_1b --levels=3 --sample_length_in_seconds=20"
            " --total_sample_length_in_seconds=180 --sr=44100 --n_samples=16 --hop_fraction=0.5,0.5,0.125",
            (SampleHps, SongHps, DrawHps, FlowHps, LaunchHps),
            published=True,
        ),
        Program(
            "pre_encode",
            "Encodes a folder of audio into a store of codes, once, for all priors.",
            "python jukebox/pre_encode.py --hps=small_vqvae --restore_vqvae=logs/small_vqvae --audio_files_dir=music"
            " --output-path=codes",
            (EncodeHps, AudioHps, VQVAEHps, LaunchHps),
            hps="teeny",
            config={"model_config_path": "model_config", "dataset_config_path": "dataset_config"},
        ),
        Program(
            "demo",
            "Makes a corpus, trains everything on it, samples in four modes, measures, and writes one page.",
            "python jukebox/demo.py --out=demo",
            (WalkthroughHps,),
        ),
        Program(
            "make_corpus",
            "Makes songs with known artist, genre, lyrics and character times, to train on and to measure with.",
            "python jukebox/make_corpus.py --out=corpus --songs=32 --seed=0",
            (CorpusHps,),
        ),
        Program(
            "align",
            "Aligns the lyrics of a finished run with time, or with --find finds the attention head that can align.",
            "python jukebox/align.py --logdir=sample_1b",
            (AlignHps, FindHps, LaunchHps),
            words=("logdir",),
        ),
        Program(
            "features",
            "Hears a folder of music with a prior, and keeps the states of its layers as features of every song.",
            "python jukebox/features.py --model=1b_lyrics --audio_files_dir=music --output_path=features --layers=36",
            (FeaturesHps, LaunchHps),
        ),
        Program(
            "export",
            "Converts weights between the published layout, the Hugging Face port's, safetensors, and run folders.",
            "python jukebox/export.py logs/small_prior --to=safetensors --out=small_prior.safetensors",
            (ExportHps,),
            words=("source",),
        ),
        Program(
            "unwrap",
            "Writes the weights alone of a trained autoencoder, averaged where they were, for other programs.",
            "python jukebox/unwrap.py --ckpt-path=logs/stable_audio_2_0_vae --name=vae --use-safetensors",
            (UnwrapHps,),
        ),
        Program(
            "make_ids",
            "Makes id tables of artists and genres from the metadata of a folder of songs, and proposes keys for labels.",
            "python jukebox/make_ids.py --audio_files_dir=music --out=ids",
            (MakeIdsHps,),
        ),
        Program(
            "fetch",
            "Fetches the files of a published model, which are for non-commercial use only.",
            "python jukebox/fetch.py 1b_lyrics",
            (FetchHps,),
            words=("model",),
        ),
    )
}

# Keys that the first implementation accepted and never read in training, with what does the job now. They stand in no
# section; old commands, presets and checkpoints may still name them.
RETIRED = {
    **dict.fromkeys(("rcall_command", "git_commit", "local_path", "func", "date", "dump", "wav"), ""),
    **dict.fromkeys(("debug_mem", "debug_eval_files", "debug_speed", "debug_batch", "debug_inputs", "debug_iters"), ""),
    **dict.fromkeys(("debug_grad_accum", "grad_accum_iters"), "--iters_before_update"),
    **dict.fromkeys(("finetune", "english_only", "train_shrink_factor", "test_shrink_factor", "p_unk"), ""),
    **dict.fromkeys(("restore_prior_ddp", "restore_decoder"), "--restore_prior"),
    **dict.fromkeys(("cond_levels", "y_cond_as_bias", "prime_rel_attn", "prime_posemb_timescale"), ""),
    **dict.fromkeys(("temp_top", "temp_rest"), "--temp of sample.py"),
    "primed_chunk_size": "--chunk_size of sample.py",
    "selected_artists": "--artist of sample.py",
    "sample": "sample.py",
    "sampler": "--mode of sample.py",
    "codes_logdir": "--codes",
    **dict.fromkeys(("labeller", "label_line"), "--metadata"),
    **dict.fromkeys(("reset_best_loss", "reset_step", "reset_opt", "reset_shd"), "--resume"),
    **dict.fromkeys(("piped", "pipe_depth"), ""),
    **dict.fromkeys(("break_train", "exit_train"), "--steps"),
    "break_test": "--eval_iters",
    **dict.fromkeys(("n_fft", "hop_length", "window_size"), "--multispec_loss_n_fft and its kin"),
    **dict.fromkeys(("n_inps", "n_hops", "n_segment", "n_total_segment", "n_segment_each", "prime_chunks"), ""),
    **dict.fromkeys(("sample_hop_length", "max_silence_pad_length", "ignore_boundaries"), ""),
    "total_sample_length_in_seconds": "the flag of this name of sample.py",
}


_PRESET_FLAGS = {
    "hps": "presets by comma, later ones win: names (see --list_hps) or .toml files, such as logs/NAME/hps.toml",
    "hps_dir": "a folder of presets of one's own, looked into first; so is that of the variable JUKEBOX_HPS_DIR",
    "list_hps": "show the presets and end",
}
_CONFIG_FLAG = {
    "config": "a .toml, .yaml or .json file of flags; those on the command line win. A YAML file may compose groups"
    " (Hydra): choose with words such as model=NAME"
}
_COMMON_FLAGS = {
    "print_hps": "show every value with where it came from, and end",
    "help": "this text; --help KEY explains one key or one section",
}
_SWITCHES = ("list_hps", "print_hps")


def parse(program: str, argv: Sequence[str]) -> Resolved:
    """The settings of a program from its command line (without its name).

    Prints and raises SystemExit(0) for --help, --list_hps and --print_hps. Raises UsageError or HparamsError, which name
    the flag and the cure, before anything is loaded or any process group starts.
    """
    spec = PROGRAMS[program]
    meta = (_PRESET_FLAGS if spec.hps is not None else {}) | _COMMON_FLAGS
    meta |= _CONFIG_FLAG if spec.config is not None else {}
    kinds = spec.schema.kinds | {name: Kind(bool if name in _SWITCHES else str) for name in meta}
    words = ["--help" if word == "-h" else word for word in argv]
    split = flags.split(words, kinds, spec.words, lone=("help",), assignments=spec.config is not None)
    given = {flag.key: flag for flag in split}
    asked = {name: given.pop(name) for name in meta if name in given}

    hps_dir = asked["hps_dir"].text or "" if "hps_dir" in asked else ""
    if _on(asked, "list_hps"):
        _answer(help.preset_list(presets.listing(hps_dir)))
    layers, named, config = [], spec.hps, None
    if "config" in asked:
        named, config = _config_layer(spec, Path(asked["config"].text or ""), given)
    if spec.hps is not None:
        layers = _preset_layers(spec, (asked["hps"].text if "hps" in asked else named) or "", hps_dir)
    layers += [config] if config else []
    if "help" in asked:
        _answer(_help(spec, meta, asked["help"], spec.schema.resolve(layers), hps_dir))
    layers.append(_command_line(spec, given.values()))
    resolved = spec.schema.resolve(layers)
    _check_together(resolved)
    if _on(asked, "print_hps"):
        _answer(resolved.to_toml())
    return resolved


def from_presets(hps: str, /, **overrides: object) -> Resolved:
    """What `train.py --hps=a,b --key=value ...` resolves to: `from_presets("small_vqvae", width=16)`."""
    spec = PROGRAMS["train"]
    resolved = spec.schema.resolve(_preset_layers(spec, hps, "")).with_values("Python", **overrides)
    _check_together(resolved)
    return resolved


def from_values(values: Mapping[str, object], origin: str, /) -> Resolved:
    """The training settings that a checkpoint carries; keys of no section (retired ones, `bandwidth`) are left out."""
    schema = PROGRAMS["train"].schema
    known = {name: schema.convert(name, value, origin) for name, value in values.items() if name in schema.keys}
    return schema.resolve([Layer(origin, known)])


def _preset_layers(spec: Program, hps: str, hps_dir: str) -> list[Layer]:
    """One layer per preset. A key that only another program reads is left out; one that nobody knows is an error."""
    elsewhere = {name for other in PROGRAMS.values() if other.hps is not None for name in other.schema.keys}
    layers, retired = [], []
    for preset in presets.chain(hps, hps_dir):
        values: dict[str, Value] = {}
        for name, value in preset.values.items():
            if name in spec.schema.keys:
                values[name] = spec.schema.convert(name, value, str(preset.path))
            elif name in RETIRED:
                retired.append(name)
            elif name not in elsewhere:
                near = suggestion(spec.schema, name)
                raise HparamsError(f"{preset.path}: there is no hyperparameter {name}.{near}")
        layers.append(Layer(f"preset {preset.name}", values))
    _warn_retired(retired)
    return layers


def _config_layer(spec: Program, path: Path, given: dict[str, Flag]) -> tuple[str | None, Layer]:
    """The presets and the values of a --config file; choices of its groups are taken out of `given`."""
    chosen = {name: given.pop(name).text or "" for name in config_file.groups(path) if name in given}
    values: dict[str, Value] = {}
    named = spec.hps
    for word, value in config_file.read(path, chosen).items():
        name = word.replace("-", "_")
        name = (spec.config or {}).get(name, name)
        if name == "hps" and spec.hps is not None:
            named = str(value)
        elif name in spec.schema.keys:
            values[name] = spec.schema.convert(name, value, f"--config={path}")
        else:
            raise HparamsError(f"--config={path}: there is no flag {word}.{suggestion(spec.schema, name)}")
    return named, Layer(f"config {path}", values)


def _command_line(spec: Program, given: Iterable[Flag]) -> Layer:
    values: dict[str, Value] = {}
    retired = []
    for flag in given:
        flag = replace(flag, key=(spec.config or {}).get(flag.key, flag.key))
        if flag.key in spec.schema.keys:
            values[flag.key] = flags.typed(flag, spec.schema.keys[flag.key].kind)
        elif spec.published and {flag.key, flag.key.removeprefix("no").removeprefix("_")} & RETIRED.keys():
            retired.append(flag.key)
        else:
            raise HparamsError(_unknown(spec, flag))
    _warn_retired(retired)
    return Layer(COMMAND_LINE, values)


def _unknown(spec: Program, flag: Flag) -> str:
    """Names the unknown flag, the nearest known one, and the program that does have it."""
    text = f"{flag.shown}: {spec.name}.py has no flag --{flag.key}."
    for other in PROGRAMS.values():
        if flag.key in other.schema.keys:
            declared = other.schema.keys[flag.key]
            return f"{text} It belongs to {other.name}.py ({title_of(declared.section)}: {declared.text})."
    return f"{text}{suggestion(spec.schema, flag.key)} All flags: python jukebox/{spec.name}.py --help"


def _warn_retired(names: list[str]) -> None:
    if names and world().rank == 0:
        shown = ", ".join(f"{name} (see {RETIRED[name]})" if RETIRED.get(name) else name for name in names)
        log.warning("accepted for old commands, without any effect: %s", shown)


def _check_together(resolved: Resolved) -> None:
    """What no section can check alone. Raises HparamsError."""
    if PriorHps not in resolved.schema.sections:
        return
    run, vqvae = resolved.section(RunHps), resolved.section(VQVAEHps)
    prior, labels = resolved.section(PriorHps), resolved.section(LabelHps)
    lyric_encoder = resolved.section(LyricEncoderHps)
    elsewhere = vqvae.restore_vqvae or resolved.section(DataHps).codes  # says how many levels there are
    if run.prior and prior.level >= vqvae.levels and (resolved.given("levels") or not elsewhere):
        raise HparamsError(
            f"--level={prior.level}: a VQ-VAE of --levels={vqvae.levels} has the levels 0 to {vqvae.levels - 1}."
        )
    if prior.single_enc_dec and not labels.lyrics:
        raise HparamsError("--single_enc_dec puts lyrics before the codes: give --use_tokens and --n_tokens.")
    length = prior.n_ctx + labels.n_tokens if prior.single_enc_dec else prior.n_ctx
    if prior.blocks and length % prior.blocks:
        parts = f"n_ctx {prior.n_ctx}" + (f" + n_tokens {labels.n_tokens}" if prior.single_enc_dec else "")
        raise HparamsError(f"--blocks={prior.blocks} must divide the sequence of {length} ({parts}).")
    blocks = lyric_encoder.prime_blocks
    if labels.lyrics and not prior.single_enc_dec and blocks and labels.n_tokens % blocks:
        raise HparamsError(f"--prime_blocks={blocks} must divide --n_tokens={labels.n_tokens}.")


def _help(spec: Program, meta: Mapping[str, str], asked: Flag, now: Resolved, hps_dir: str) -> str:
    script = f"{spec.name}.py"
    if not asked.text:
        general = {f"--{name}": text for name, text in meta.items()}
        return help.overview(script, spec.about, spec.example, general, spec.words, now)
    return help.topic(script, asked.text, presets.listing(hps_dir) if spec.hps is not None else (), now)


def _on(asked: Mapping[str, Flag], name: str) -> bool:
    return name in asked and flags.typed(asked[name], Kind(bool)) is True


def _answer(text: str) -> NoReturn:
    if world().rank == 0:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `--help | head` has seen enough; nothing may be flushed at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)
