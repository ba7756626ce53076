"""The `training` section of a model config: losses, discriminator, optimisers, with the published names and defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jukebox.autoencoder.schema import Args, Array, Kind, Pair, Part, PositiveInts, Strict, fail, refuse_keys, refused

if TYPE_CHECKING:
    from jukebox.autoencoder.config import ModelConfig

SEVEN_SCALES = (2048, 1024, 512, 256, 128, 64, 32)
TORCH_WINDOWS = ("hann_window", "hamming_window", "blackman_window", "bartlett_window", "kaiser_window")


def _check_windows(key: str, windows: Iterable[int], ffts: Iterable[int]) -> None:
    for fft, window in zip(ffts, windows, strict=True):
        if window > fft:
            raise fail(key, f"a window of {window} does not fit into an fft of {fft}")


# ----------------------------------------------------------------------------------------------------------- losses


class STFTArgs(Strict):
    """The terms of one spectral loss, whatever its resolution."""

    window: str = "hann_window"
    w_sc: NonNegativeFloat = 1.0
    w_log_mag: NonNegativeFloat = 1.0
    w_lin_mag: NonNegativeFloat = 0.0
    w_phs: NonNegativeFloat = 0.0
    scale: Literal["mel", "chroma"] | None = None
    n_bins: PositiveInt | None = None
    perceptual_weighting: bool = False
    scale_invariance: bool = False
    eps: PositiveFloat = 1e-8
    output: Literal["loss"] = "loss"
    mag_distance: Literal["L1", "L2"] = "L1"

    @model_validator(mode="after")
    def _bins(self) -> STFTArgs:
        if self.scale and self.n_bins is None:
            raise fail("n_bins", f"scale {self.scale} needs n_bins")
        return self

    @model_validator(mode="after")
    def _known_window(self) -> STFTArgs:
        if self.window in TORCH_WINDOWS:
            return self
        from scipy.signal import get_window  # late: few configs name another window

        try:
            get_window(self.window, 16)
        except ValueError:
            raise fail("window", f"unknown window {self.window}; allowed: {', '.join(TORCH_WINDOWS)}, or a window that "
                       "scipy.signal.get_window knows by its name alone") from None  # fmt: skip
        return self


class MultiSTFTArgs(STFTArgs):
    """One STFT per entry of the three lists, in samples."""

    fft_sizes: PositiveInts = (1024, 2048, 512)
    hop_sizes: PositiveInts = (120, 240, 50)
    win_lengths: PositiveInts = (600, 1200, 240)

    @model_validator(mode="after")
    def _same_number(self) -> MultiSTFTArgs:
        if not len(self.fft_sizes) == len(self.hop_sizes) == len(self.win_lengths) > 0:
            raise fail("fft_sizes", f"fft_sizes, hop_sizes and win_lengths need the same number of entries, got "
                       f"{len(self.fft_sizes)}, {len(self.hop_sizes)} and {len(self.win_lengths)}")  # fmt: skip
        _check_windows("win_lengths", self.win_lengths, self.fft_sizes)
        return self


class _SpectralWeights(Strict):
    mrstft: NonNegativeFloat


class SpectralLossConfig(Strict):
    """Spectral loss over several resolutions. `type` is not looked at, as in the published code."""

    type: str = "mrstft"
    config: MultiSTFTArgs = MultiSTFTArgs()
    weights: _SpectralWeights
    decay: PositiveFloat = 1.0


class MelArgs(Strict):
    """Windows hop by a quarter of themselves."""

    n_mels: PositiveInts
    window_lengths: Array[Annotated[int, Field(ge=4)]]
    pow: PositiveFloat
    log_weight: NonNegativeFloat
    mag_weight: NonNegativeFloat

    @model_validator(mode="after")
    def _same_number(self) -> MelArgs:
        if not len(self.n_mels) == len(self.window_lengths) > 0:
            raise fail("n_mels", f"n_mels and window_lengths need the same number of entries, got {len(self.n_mels)} and "
                       f"{len(self.window_lengths)}")  # fmt: skip
        return self


class _MelWeights(Strict):
    mrmel: NonNegativeFloat


class MelLossConfig(Strict):
    type: str = "mrmel"
    config: MelArgs
    weights: _MelWeights


class _TimeWeights(Strict):
    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 0.0


class TimeLossConfig(Strict):
    type: str = "l1"
    weights: _TimeWeights = _TimeWeights()
    decay: PositiveFloat = 1.0


class _BottleneckWeights(Strict):
    kl: NonNegativeFloat = 1e-6
    mmd: NonNegativeFloat = 100.0
    softnorm: NonNegativeFloat = 1.0


class BottleneckLossConfig(Strict):
    """Weights of the bottleneck's own terms; which one applies follows from the bottleneck, not from `type`."""

    type: str = "kl"
    weights: _BottleneckWeights = _BottleneckWeights()


# --------------------------------------------------------------------------------------------------- discriminators


class EncodecDiscriminatorArgs(Strict):
    filters: PositiveInt
    n_ffts: PositiveInts = (1024, 2048, 512)
    hop_lengths: PositiveInts = (256, 512, 128)
    win_lengths: PositiveInts = (1024, 2048, 512)
    out_channels: PositiveInt = 1
    max_filters: PositiveInt = 1024
    filters_scale: Literal[1] = 1
    kernel_size: Pair[PositiveInt] = (3, 9)
    dilations: PositiveInts = (1, 2, 4)
    stride: Pair[PositiveInt] = (1, 1)
    normalized: bool = True
    activation: Literal["LeakyReLU"] = "LeakyReLU"
    activation_params: dict[str, float] = {"negative_slope": 0.2}
    spec_scale_pow: NonNegativeFloat = 0.0
    normalize_losses: bool = False
    loss_type: Literal["hinge"] = "hinge"

    @model_validator(mode="after")
    def _same_number(self) -> EncodecDiscriminatorArgs:
        if not len(self.n_ffts) == len(self.hop_lengths) == len(self.win_lengths) > 0:
            raise fail("n_ffts", f"n_ffts, hop_lengths and win_lengths need the same number of entries, got "
                       f"{len(self.n_ffts)}, {len(self.hop_lengths)} and {len(self.win_lengths)}")  # fmt: skip
        _check_windows("win_lengths", self.win_lengths, self.n_ffts)
        if unknown := set(self.activation_params) - {"negative_slope", "inplace"}:
            raise fail("activation_params", f"LeakyReLU has no {sorted(unknown)[0]}; allowed: negative_slope")
        return self


class OobleckDiscriminatorArgs(Strict):
    """`in_channels` is the audio's unless given (the published default, 1, fits mono only)."""

    in_channels: PositiveInt | None = None


class DACDiscriminatorArgs(Strict):
    rates: PositiveInts = ()
    periods: PositiveInts = (2, 3, 5, 7, 11)
    fft_sizes: PositiveInts = (2048, 1024, 512)
    bands: Array[Pair[float]] = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    use_hinge: bool = False

    @model_validator(mode="after")
    def _nets(self) -> DACDiscriminatorArgs:
        if self.rates:
            raise fail("rates", "nets at other sample rates never worked in the published code; leave it out, or use "
                       "periods and fft_sizes")  # fmt: skip
        if not (self.periods or self.fft_sizes):
            raise fail("periods", "periods and fft_sizes are both empty: that leaves no net to judge with")
        if self.fft_sizes and not self.bands:
            raise fail("bands", "fft_sizes need at least one band, a pair of fractions of the spectrum")
        for index, (low, high) in enumerate(self.bands):
            if not 0 <= low < high <= 1:
                raise fail(f"bands[{index}]", f"a band goes from a smaller to a larger fraction within 0 ... 1, not from "
                           f"{low:g} to {high:g}")  # fmt: skip
            for window in self.fft_sizes:
                if int(low * (window // 2 + 1)) == int(high * (window // 2 + 1)):
                    raise fail("fft_sizes", f"an fft of {window} has no bin from {low:g} to {high:g} of its spectrum "
                               "(bands): use a longer one, or wider bands")  # fmt: skip
        return self


class _AdversarialWeights(Strict):
    adversarial: NonNegativeFloat
    feature_matching: NonNegativeFloat


class DiscriminatorPart(Part[Kind, Args], Generic[Kind, Args]):
    weights: _AdversarialWeights

    @model_validator(mode="after")
    def _learns(self) -> DiscriminatorPart[Kind, Args]:
        if not self.requires_grad:
            raise fail("requires_grad", "a discriminator is trained in any case; leave it out")
        return self


Discriminator = Annotated[
    Annotated[
        DiscriminatorPart[Literal["encodec"], EncodecDiscriminatorArgs]
        | DiscriminatorPart[Literal["oobleck"], OobleckDiscriminatorArgs]
        | DiscriminatorPart[Literal["dac"], DACDiscriminatorArgs],
        Field(discriminator="type"),
    ],
    refused("discriminator", {
        "big_vgan": "the published code cannot build it, so there is nothing to be compatible with; use encodec or dac",
    }),
]  # fmt: skip


class LossConfigs(Strict):
    """What the generator is trained on; a part that is left out contributes nothing."""

    discriminator: Discriminator | None = None
    spectral: SpectralLossConfig | None = None
    mrmel: MelLossConfig | None = None
    time: TimeLossConfig | None = None
    bottleneck: BottleneckLossConfig = BottleneckLossConfig()

    @property
    def compares(self) -> bool:
        """Whether decoded audio is compared with the real one."""
        time = self.time is not None and (self.time.weights.l1 > 0 or self.time.weights.l2 > 0)
        return time or self.spectral is not None or (self.mrmel is not None and self.mrmel.weights.mrmel > 0)

    @model_validator(mode="before")
    @classmethod
    def _no_downloads(cls, data: Any) -> Any:
        why = "the hubert loss is not offered: it downloads a speech model's weights; leave it out, or use mrmel"
        return refuse_keys(data, {"hubert": why})


def default_losses() -> LossConfigs:
    """The losses of a training section without `loss_configs`."""
    hops = tuple(scale // 4 for scale in SEVEN_SCALES)
    return LossConfigs.model_validate({
        "discriminator": {
            "type": "encodec",
            "config": {"filters": 32, "n_ffts": SEVEN_SCALES, "hop_lengths": hops, "win_lengths": SEVEN_SCALES},
            "weights": {"adversarial": 0.1, "feature_matching": 5.0},
        },
        "spectral": {
            "config": {
                "fft_sizes": SEVEN_SCALES, "hop_sizes": hops, "win_lengths": SEVEN_SCALES, "perceptual_weighting": True,
            },
            "weights": {"mrstft": 1.0},
        },
        "time": {"weights": {"l1": 0.0}},
    })  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the rest


class EvalSTFTArgs(STFTArgs):
    """One resolution, in samples."""

    fft_size: PositiveInt = 1024
    hop_size: PositiveInt = 256
    win_length: PositiveInt = 1024

    @model_validator(mode="after")
    def _fits(self) -> EvalSTFTArgs:
        _check_windows("win_length", [self.win_length], [self.fft_size])
        return self


class EvalMelArgs(EvalSTFTArgs):
    """As stft, on a mel scale."""

    n_mels: PositiveInt = 128


class SISDRArgs(Strict):
    zero_mean: bool = True
    eps: PositiveFloat = 1e-8


class EvalLossConfigs(Strict):
    """Figures of held-out audio."""

    stft: EvalSTFTArgs | None = None
    sisdr: SISDRArgs | None = None
    mel: EvalMelArgs | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_pesq(cls, data: Any) -> Any:
        why = "the pesq figure is not offered: the published one never ran; use stft, sisdr or mel"
        return refuse_keys(data, {"pesq": why})


class Choice(Strict):
    """A class by name with its arguments, which are checked where it is built."""

    type: str
    config: dict[str, Any] = {}


class OptimiserConfig(Strict):
    optimizer: Choice
    scheduler: Choice | None = None


class OptimiserConfigs(Strict):
    autoencoder: OptimiserConfig
    discriminator: OptimiserConfig | None = None


class DemoConfig(Strict):
    """`demo_every` counts steps."""

    demo_every: PositiveInt = 2000


class TrainingConfig(Strict):
    """How to train. `warmup_steps` counts generator and discriminator steps together."""

    learning_rate: PositiveFloat | None = None
    warmup_steps: NonNegativeInt = 0
    encoder_freeze_on_warmup: bool = False
    use_ema: bool = False
    loss_configs: LossConfigs | None = None
    eval_loss_configs: EvalLossConfigs | None = None
    optimizer_configs: OptimiserConfigs | None = None
    force_input_mono: bool = False
    latent_mask_ratio: float = Field(0.0, ge=0.0, lt=1.0)
    teacher_model: ModelConfig | None = None
    teacher_model_ckpt: str | None = None
    demo: DemoConfig = DemoConfig()

    @property
    def losses(self) -> LossConfigs:
        return self.loss_configs or default_losses()

    def least_samples(self) -> Iterator[tuple[str, int]]:
        """What audio each spectrum needs at least: its place in this section, and samples. Centred ones are reflected at
        both ends by half their length."""
        losses, figures = self.losses, self.eval_loss_configs
        if losses.spectral:
            yield "loss_configs.spectral.config.fft_sizes", max(losses.spectral.config.fft_sizes) // 2 + 1
        if losses.mrmel:
            yield "loss_configs.mrmel.config.window_lengths", max(losses.mrmel.config.window_lengths) // 2 + 1
        match losses.discriminator.config if losses.discriminator else None:
            case EncodecDiscriminatorArgs(n_ffts=sizes):
                yield "loss_configs.discriminator.config.n_ffts", max(sizes)
            case DACDiscriminatorArgs(fft_sizes=sizes) if sizes:
                yield "loss_configs.discriminator.config.fft_sizes", max(sizes)
        if figures and figures.stft:
            yield "eval_loss_configs.stft.fft_size", figures.stft.fft_size // 2 + 1
        if figures and figures.mel:
            yield "eval_loss_configs.mel.fft_size", figures.mel.fft_size // 2 + 1

    @model_validator(mode="before")
    @classmethod
    def _no_latents(cls, data: Any) -> Any:
        return refuse_keys(
            data, {"pre_encoded": "pre_encoded is for priors over latents; an autoencoder trains on audio"}
        )

    @model_validator(mode="after")
    def _complete(self) -> TrainingConfig:
        if self.learning_rate is None and self.optimizer_configs is None:
            raise fail("learning_rate", "give learning_rate, or optimizer_configs with an lr of their own")
        if (self.teacher_model is None) != (self.teacher_model_ckpt is None):
            raise fail("teacher_model", "teacher_model and teacher_model_ckpt come together")
        return self
