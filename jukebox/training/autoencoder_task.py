"""Training an autoencoder that a model config describes: generator and discriminator move in turn.

Legend: B batch, C channels, T audio samples, D latent channels, N latent frames, Q codebooks, K bins, w their width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from jukebox.audio import io
from jukebox.autoencoder.bottlenecks import DACRVQ, Info
from jukebox.autoencoder.config import ModelConfig
from jukebox.autoencoder.discriminators import Discriminator
from jukebox.autoencoder.losses import EvalFigures, GeneratorLosses, Teaching
from jukebox.autoencoder.model import Autoencoder, load_weights
from jukebox.autoencoder.quantisers import CodebookStatistics, Draws
from jukebox.autoencoder.recipe import TrainingConfig
from jukebox.data.loaders import Batch as AudioBatch
from jukebox.errors import CheckpointError, UserError
from jukebox.interop.published import Entry
from jukebox.models.checkpoint import Checkpoint
from jukebox.parallel.comm import Comm
from jukebox.runlog import RunLog
from jukebox.training.candidates import global_candidates
from jukebox.training.ema import WarmingEMA
from jukebox.training.player import Player, Stepped
from jukebox.training.tasks import Batch, Clips, Output, Task

log = logging.getLogger(__name__)

MOST_GUILTY = 10  # steps in a row with a term that is not finite
DEMO_ITEMS = 8
_SIGNS = 2  # a stream of random numbers, beside those of the codebooks' candidates


class Diverged(UserError):
    """A term of the loss is not finite any more; the weights in memory are those of the last good step."""


@dataclass
class AutoencoderTask(Task):
    """An autoencoder ("main") against a discriminator, where its config has one.

    Steps count both: odd ones move the discriminator, even ones the autoencoder; without a discriminator every step
    moves the autoencoder. dtype: of the nets' arithmetic. flip: turn the sign of each item with probability 1/2.
    """

    net: Autoencoder
    players: dict[str, Player]
    comm: Comm
    clips: Clips
    config: ModelConfig
    config_text: str  # as JSON, which checkpoints carry
    discriminator: Discriminator | None = None
    teacher: Autoencoder | None = None
    dtype: torch.dtype = torch.float32
    folder: Path | None = None  # of the run, for demos as files
    seed: int = 0
    flip: bool = True
    table: list[Entry] = field(default_factory=list)  # names in memory are the published ones
    seen: int = 0  # batches, numbers the draws
    guilty: int = 0  # steps in a row with a term that is not finite

    def __post_init__(self) -> None:
        device, training = self.comm.device, self.config.training
        assert training is not None
        self.recipe: TrainingConfig = training
        self.losses = GeneratorLosses(self.config).to(device)
        figures = training.eval_loss_configs
        self.figures = EvalFigures(figures, self.config.sample_rate).to(device) if figures else None
        self.draws = Draws()
        self._pending: list[Tensor] = []
        self._frozen = False

    # -------------------------------------------------------------------------------------------------- one batch

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Codebooks that start by k-means do so from the latents of the whole first batch."""
        bottleneck = self.net.averaged_codebooks
        if bottleneck is None or bottleneck.quantizer.ready:
            return
        with self._arithmetic():
            latents = self.net.encode(self._heard(self._reals(batch)), skip_bottleneck=True)[0].float()
        if self.net.config.bottleneck is not None and self.net.config.bottleneck.type == "rvq_vae":
            latents = latents.chunk(2, dim=1)[0]  # the means
        everything = latents.new_zeros(len(latents), self.comm.size, *latents.shape[1:])
        everything[:, self.comm.rank] = latents
        rows = self.comm.all_reduce(everything).flatten(0, 1).mT  # (B, ranks, D, N) -> (global B, N, D)
        generator = torch.Generator(rows.device).manual_seed(self.seed)
        bottleneck.quantizer.start(rows, Draws(generator))

    def loss(self, batch: Batch, step: int) -> Output:
        """The step's loss: of the discriminator at odd steps, of the autoencoder at even ones."""
        reals = self._reals(batch)
        if self.flip:
            reals = reals * self._signs(len(reals)).to(reals)
        self.seen += 1
        warm = step >= self.recipe.warmup_steps
        self._freeze(warm and self.recipe.encoder_freeze_on_warmup)
        if self.discriminator is not None and step % 2:
            with torch.no_grad():
                _, info, decoded, reals = self._reconstruct(reals)
            with self._arithmetic():
                loss = self.discriminator.own_loss(reals, decoded)
            return Output(loss.float(), {}, "discriminator", self._learnt(info, len(reals)))
        latents, info, decoded, compared = self._reconstruct(reals)
        terms = self.losses(
            compared, decoded, info, evaluation=self.players["main"].steps + 1, latents=latents,
            adversarial=self._adversarial(compared, decoded, warm), teaching=self._teaching(reals, latents, len(compared[0, 0])),
        )  # fmt: skip
        loss = _total(terms)
        metrics = {name: term.detach().float() for name, term in terms.items()}
        metrics |= {"latent_std": latents.detach().float().std(), "data_std": reals.std()}
        return Output(loss, metrics, learnt=self._learnt(info, len(reals)))

    def _reals(self, batch: Batch) -> Tensor:
        """The audio of a batch `[B, C, T]`."""
        assert isinstance(batch, AudioBatch), "an autoencoder needs audio"
        audio = batch.to_mono() if self.config.audio_channels == 1 else batch.audio
        return audio.to(self.comm.device).mT.contiguous()  # (B, T, C) -> (B, C, T)

    def _signs(self, B: int) -> Tensor:
        """1 or -1 `[B, 1, 1]` for each item, the same for any number of ranks."""
        rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[self.seen, 0, _SIGNS, 0]))
        signs = rng.integers(0, 2, B * self.comm.size)[self.comm.rank :: self.comm.size] * 2 - 1
        return torch.from_numpy(signs)[:, None, None]

    def _heard(self, reals: Tensor) -> Tensor:
        """What the encoder gets."""
        return reals.mean(1, keepdim=True) if self.recipe.force_input_mono else reals

    def _reconstruct(self, reals: Tensor) -> tuple[Tensor, Info, Tensor, Tensor]:
        """Latents, the bottleneck's info, and float32 audio `[B, C, T']`: decoded, and what to compare it with."""
        with self._arithmetic():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
                latents, info = self.net.encode(self._heard(reals), draws=self.draws)
            if self.recipe.latent_mask_ratio and self.net.training:
                gone = self.draws.uniform(latents.shape, latents) < self.recipe.latent_mask_ratio
                latents = latents.masked_fill(gone, 0.0)
            decoded = self.net.decode(latents, draws=self.draws).float()
        length = min(decoded.shape[-1], reals.shape[-1])
        return latents, info, decoded[..., :length], reals[..., :length]

    def _adversarial(self, reals: Tensor, decoded: Tensor, warm: bool) -> tuple[Tensor, Tensor] | None:
        """The autoencoder's two adversarial terms, 0 until the warm-up is over; the discriminator gets no gradient."""
        if self.discriminator is None:
            return None
        if not warm:
            return reals.new_zeros(()), reals.new_zeros(())
        self.discriminator.requires_grad_(False)
        try:
            with self._arithmetic():
                adversarial, matching = self.discriminator.generator_losses(reals, decoded)
        finally:
            self.discriminator.requires_grad_(True)
        return adversarial.float(), matching.float()

    def _teaching(self, reals: Tensor, latents: Tensor, length: int) -> Teaching | None:
        """The teacher's view of the batch, cut to `length` samples."""
        if self.teacher is None:
            return None
        with torch.no_grad(), self._arithmetic():
            theirs, _ = self.teacher.encode(self._heard(reals), draws=self.draws)
            heard = [
                net.decode(code, draws=self.draws).float()[..., :length]
                for net, code in ((self.teacher, theirs), (self.teacher, latents), (self.net, theirs))
            ]
        return Teaching(theirs, *heard)

    def _arithmetic(self) -> torch.autocast:
        device = torch.device(self.comm.device).type
        return torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)

    def _freeze(self, frozen: bool) -> None:
        """Encoder and bottleneck get no gradient any more; a bottleneck that quantises on decoding goes on."""
        self._frozen = frozen
        if not frozen:
            return
        self.net.encoder.requires_grad_(False)
        bottleneck = self.net.bottleneck
        if bottleneck is not None and not (isinstance(bottleneck, DACRVQ) and bottleneck.args.quantize_on_decode):
            bottleneck.requires_grad_(False)

    # -------------------------------------------------------------------------------------------------- afterwards

    def _learnt(self, info: Info, B: int) -> list[Tensor]:
        """Sums `[Q, K, w]`, counts `[Q, K]` and candidates `[Q, K, w]` of codebooks moved by averages."""
        bottleneck = self.net.averaged_codebooks
        if bottleneck is None:
            return []
        found = bottleneck.statistics(info)
        bins = found.sums.shape[1]
        spare = [
            global_candidates(rows, B, bins, self.comm, self.seed, (self.seen, stage, 0))
            for stage, rows in enumerate(found.rows)
        ]
        return [found.sums, found.counts, torch.stack(spare)]

    def accept(self, out: Output, stepped: Stepped | None) -> dict[str, Tensor]:
        """Move averaged codebooks by the sums of all ranks; name the term that was not finite when a step was not taken.

        Raises Diverged when that goes on.
        """
        self._watch(out, stepped)
        learnt: list[Tensor] = out.learnt
        if self._pending:  # sums and counts of the batches of one step add up
            learnt[0] += self._pending[0]
            learnt[1] += self._pending[1]
        self._pending = learnt if stepped is None else []
        bottleneck = self.net.averaged_codebooks
        if bottleneck is None or stepped is None or not stepped.done:
            return {}
        self.comm.all_reduce_tensors(learnt)
        sums, counts, candidates = learnt
        return bottleneck.quantizer.update(CodebookStatistics(sums, counts, sums), candidates)

    def _watch(self, out: Output, stepped: Stepped | None) -> None:
        if stepped is None or stepped.done:
            self.guilty = 0 if stepped else self.guilty
            return
        values = out.metrics or {"discriminator_loss": out.loss.detach()}
        mine = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
        names = sorted({name for rank in self.comm.gather_objects(mine) for name in rank})
        who = "discriminator" if out.player == "discriminator" else "autoencoder"
        what = ", ".join(names) if names else f"the gradient of the {who}"
        log.warning("a step was skipped: %s is not finite", what)
        self.guilty += bool(names) or not self.players[out.player].scaler
        if self.guilty >= MOST_GUILTY:
            raise Diverged(
                f"{what} was not finite in {self.guilty} steps in a row; they changed nothing, and the last good state is "
                "saved. Lower the learning rate or the weight of this term in --model-config, or look at the data."
            )

    def measure(self, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """The loss without its adversarial terms, and the figures that eval_loss_configs asks for."""
        reals = self._reals(batch)
        latents, info, decoded, compared = self._reconstruct(reals)
        losses = self.losses(compared, decoded, info, evaluation=self.players["main"].steps + 1)
        found = {"loss": _total(losses), **losses}
        if self.figures:
            found |= self.figures(decoded, compared)
        return found | {"latent_std": latents.float().std(), "latent_mean": latents.float().mean()}, len(reals)

    def show(self, batch: Batch, log: RunLog, step: int, part: str) -> None:
        """Input and reconstruction, their spectrograms, the latents as a picture and in numbers."""
        reals = self._reals(batch)[: max(1, self.clips.most)]
        latents, _, decoded, compared = self._reconstruct(reals)
        self.clips.log(log, f"{part}x_in", compared.mT, step)
        self.clips.log(log, f"{part}x_out", decoded.mT, step)
        self.clips.compare(log, f"{part}x_in_over_out", compared.mT, decoded.mT, step)
        latents = latents.float()
        log.image(f"{part}latents", _picture(latents[0]), step)
        numbers = {"mean": latents.mean(), "std": latents.std(), "min": latents.min(), "max": latents.max()}
        across = latents.std(dim=(0, 2)) if latents[:, 0].numel() > 1 else latents.new_zeros(1)
        numbers |= {"channel_std_min": across.min(), "channel_std_max": across.max()}
        log.scalars({f"{part}latents_{name}": float(value) for name, value in numbers.items()}, step)

    def demo(self, batch: Batch, log: RunLog, step: int) -> None:
        """`media/recon_<step>.wav`: items and their reconstructions in turn, one after the other."""
        reals = self._reals(batch)[:DEMO_ITEMS]
        _, _, decoded, compared = self._reconstruct(reals)
        both = torch.stack([compared[:, : decoded.shape[1]], decoded[:, : compared.shape[1]]], 1)  # (B, 2, C, T)
        joined = both.flatten(0, 1).transpose(0, 1).flatten(1).mT.cpu().numpy()  # -> (2 B T, C)
        log.audio("recon", joined, self.config.sample_rate, step)
        if self.comm.is_first and self.folder is not None:
            try:
                media = self.folder / "media"
                media.mkdir(parents=True, exist_ok=True)
                io.write(media / f"recon_{step:08d}.wav", joined, self.config.sample_rate)
            except (OSError, UserError) as error:
                _warn(f"the demo of step {step} cannot be written: {error}")

    # -------------------------------------------------------------------------------------------------- checkpoints

    @property
    def ema(self) -> WarmingEMA | None:
        """The average of the autoencoder's weights, if its config asks for one."""
        return cast("WarmingEMA | None", self.players["main"].ema)

    def published(self) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
        """The averaged autoencoder as published unwrapped files have it; optimisers stand in `own_state`."""
        if self.ema is None:
            return _copied(self.net), None
        with self.ema:
            return _copied(self.net), None

    def load_published(self, found: Checkpoint, note: str) -> None:
        """Weights of an unwrapped or wrapped autoencoder; every tensor must fit."""
        if (
            "discriminator" in self.players
            and "players" in found.extra
            and "discriminator" not in found.extra["players"]
        ):
            raise CheckpointError(f"{found.path}: was trained without a discriminator, and this model config has one")
        load_weights(self.net, found.model, str(found.path), strict=True)

    def own_state(self) -> dict[str, Any]:
        """The config, optimisers, codebooks as they are, averages of buffers, and how many draws were made."""
        ema = self.ema
        return {
            "config": self.config_text,
            "optimisers": {name: player.optimiser.state_dict() for name, player in self.players.items()},
            "buffers": {name: buffer.detach().clone() for name, buffer in self.net.named_buffers()},
            "ema_buffers": list(ema.buffer_averages) if ema else [],
            "seen": self.seen,
        }

    @torch.no_grad()
    def load_own_state(self, state: dict[str, Any]) -> None:
        """Put `own_state` back."""
        for name, player in self.players.items():
            player.optimiser.load_state_dict(state["optimisers"][name])
        for name, buffer in self.net.named_buffers():
            buffer.copy_(state["buffers"][name])
        for average, saved in zip(self.ema.buffer_averages if self.ema else [], state["ema_buffers"], strict=True):
            average.copy_(saved)
        self.seen = int(state["seen"])


def _total(terms: dict[str, Tensor]) -> Tensor:
    """The sum of the terms, which may be none where only a discriminator judges."""
    return torch.stack([term.float() for term in terms.values()]).sum() if terms else torch.zeros(())


def _copied(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def _picture(latents: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Latents `[D, N]` as a picture: three deviations to either side from black to white."""
    scaled = (latents / latents.std().clamp_min(1e-6) / 6 + 0.5).clamp(0, 1)
    return (scaled * 255).byte().cpu().numpy()


def _warn(text: str) -> None:
    log.warning("%s", text)
