"""AugWM in action space: a policy conditioned on how much of its command each actuator still delivers.

A dead or weak motor is no scaling of the change of state, which is all that dynamics amplitude scaling
(`offline_train/algorithms/augwm.py`) can tell. It is exactly a scaling of the command: with the gains g the changed
robot does under the action a what the original one did under g a. So the world model is augmented there,

    s' ~ M(s, g a),    transitions kept as ([s; g], a, r, [s'; g]),

g drawn for each rollout. Actor and both critics read g. A real transition in which a motor was sent nothing is one of
a robot whose motor is dead as well, whatever that motor was sent: a share of them is learned from as such.

The world model has to know what happens when a motor does nothing, so the log should hold that:
`surefoot collect weakened=0.6` is such a log, recorded on the original robot. Better still is a second log in which a
policy of this kind practises, told what each motor will get (`surefoot collect bundle=BUNDLE weakened=0.85`): it holds
the gaits of the policy that is to be trained, not those of others.
Gains that the policy has yet to learn of may be drawn more often than others (`regret_share`): those of transitions
that turned out better than its critics said (Jiang et al. 2021, "Replay-guided adversarial environment design").
With `told: false` the policy does not read g, which is domain randomisation: one policy for all gains.

No gain says that wind blows, that the ground slopes, or that the body is heavier than it was. To the first order each
adds something to how the body's velocity changes, so with `pushes` (configs/algorithm/augwm-pushed.yaml) the
augmentation is affine,

    s' ~ M(s, g a) + b,    transitions kept as ([s; b; g], a, r, [s'; b; g]),

b drawn for a share of the rollouts, for the pushed terms alone. The thesis behind AugWM (Ball, "Limitations and Future
Work" of its chapter 3) proposes such translations for wind and for other gravity.
What each part gives: results/halfcheetah-weakened/README.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from adapters.errors import UserError
from deploy.context import complete_settings, require_estimator
from deploy.spec import ContextSpec, RobotDescription
from offline_train.algorithms.mopo import Mopo, MopoConfig
from offline_train.algorithms.sac import Sac
from offline_train.models.ensemble import DynamicsEnsemble, TerminationRule
from offline_train.models.rollout import Change
from offline_train.replay import Batch


class ActuatorAugWmConfig(MopoConfig):
    """Settings beyond MOPO's."""

    name: Literal["augwm-actuators"] = "augwm-actuators"  # type: ignore[assignment]
    gain_low: float = Field(default=0.4, ge=0, lt=1, description="smallest gain where several motors are weak")
    gain_high: float = Field(default=1.3, ge=1, description="largest gain")
    nominal_share: float = Field(default=0.35, ge=0, le=1, description="share of the rollouts with every gain 1")
    single_share: float = Field(default=0.4, ge=0, le=1, description="share with one weak or dead motor")
    shared_share: float = Field(default=0.15, ge=0, le=1, description="share with one gain for all; the rest: one each")
    dead_share: float = Field(default=0.6, ge=0, le=1, description="share of the single weak motors that are dead")
    relabel: float = Field(default=0.8, ge=0, le=1, description="share of the unused motors that are taken for dead")
    pushes: tuple[tuple[int, float], ...] = Field(
        default=(), description="terms of the observation, from 0, each with the most that is added to its change"
    )
    push_share: float = Field(default=0.5, ge=0, le=1, description="share of the rollouts with pushes")
    regret_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the changed rollouts whose change is drawn by regret"
    )
    told: bool = Field(default=True, description="whether the policy reads the gains, and the pushes")
    estimator: str = Field(default="actuator_gain", description="context estimator that the bundle carries")
    estimator_settings: dict[str, Any] = Field(default_factory=dict, description="its settings")

    @model_validator(mode="after")
    def _makes_sense(self) -> ActuatorAugWmConfig:
        if self.nominal_share + self.single_share + self.shared_share > 1 + 1e-9:
            raise ValueError("nominal_share, single_share and shared_share must not be more than 1 together")
        require_estimator(self.estimator, "actuator_gain", self.estimator_settings)
        if any(term < 0 or not span > 0 for term, span in self.pushes):
            raise ValueError("pushes are above 0, for terms of the observation counted from 0")
        if len(set(self.pushed)) < len(self.pushed):
            raise ValueError("pushes names a term of the observation twice")
        if self.pushes and self.told and self.estimator != "actuator_gain":
            raise ValueError(f"the estimator '{self.estimator}' tells no pushes; actuator_gain does")
        return self

    @property
    def pushed(self) -> tuple[int, ...]:
        """Terms of the observation that are pushed."""
        return tuple(term for term, _ in self.pushes)

    @property
    def push_spans(self) -> tuple[float, ...]:
        """The largest push on each of them."""
        return tuple(span for _, span in self.pushes)

    def context_spec(self, robot: RobotDescription) -> ContextSpec | None:
        """The pushes, and one gain for each actuator.

        Raises:
            UserError: a term that is pushed is none of the robot's observation.
        """
        if max(self.pushed, default=0) >= robot.obs_dim:
            raise UserError(
                f"algorithm.pushes names term {max(self.pushed)} of the observation, which has {robot.obs_dim}, "
                "counted from 0."
            )
        if not self.told:
            return None
        spans = self.push_spans
        return ContextSpec(
            kind="actuator_gain",
            dim=len(spans) + robot.act_dim,
            nominal=(0.0,) * len(spans) + (1.0,) * robot.act_dim,
            low=(*(-span for span in spans), *(0.0,) * robot.act_dim),
            high=spans + (self.gain_high,) * robot.act_dim,
            estimator=self.estimator,
            settings=complete_settings(self.estimator, self.estimator_settings),
            pushed=self.pushed,
        )


def draw_gains(rows: int, dims: int, config: ActuatorAugWmConfig, generator: torch.Generator) -> Tensor:
    """Draw gains `(rows, dims)`: nominal, one motor weak or dead, all motors alike, or each its own.

    A single weak motor has a gain ~ Unif([0, 1]), a dead one 0; otherwise gains are ~ Unif([gain_low, gain_high]).
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    kind = uniform(rows, 1)
    one = torch.randint(dims, (rows, 1), generator=generator, device=generator.device)
    weak = torch.where(uniform(rows, 1) < config.dead_share, 0.0, uniform(rows, 1))
    single = torch.ones(rows, dims, device=generator.device).scatter(1, one, weak)
    span = config.gain_high - config.gain_low
    shared, each = (config.gain_low + span * uniform(rows, width) for width in (1, dims))
    up_to_single = config.nominal_share + config.single_share
    gains = torch.where(kind < up_to_single + config.shared_share, shared, each)
    gains = torch.where(kind < up_to_single, single, gains)
    return torch.where(kind < config.nominal_share, 1.0, gains)


def draw_pushes(rows: int, config: ActuatorAugWmConfig, generator: torch.Generator) -> Tensor:
    """Draw pushes `(rows, pushed)`, ~ Unif([-span, span]) each in a share of the rows, none in the others."""
    device = generator.device
    spans = torch.tensor(config.push_spans, device=device)
    drawn = (2.0 * torch.rand(rows, len(spans), generator=generator, device=device) - 1.0) * spans
    some = torch.rand(rows, 1, generator=generator, device=device) < config.push_share
    return torch.where(some, drawn, 0.0)


def positive_value_loss(sac: Sac, batch: Batch) -> Tensor:
    """max(0, r + gamma (1 - d) min_i Q_i(s', pi(s')) - min_i Q_i(s, a)), `(batch,)`.

    It stands for regret, which nobody knows (Jiang et al. 2021, section 3): where a policy does better than its critics
    thought there is something to learn.
    """
    value, following = (
        sac.critics(sac.normalise(obs), action).amin(0)
        for obs, action in ((batch.obs, batch.action), (batch.next_obs, sac(batch.next_obs)))
    )
    return (batch.reward + sac.config.discount * (1.0 - batch.terminal) * following - value).clamp(min=0.0)


def draw_by_rank(contexts: Tensor, score: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Draw `rows` of the contexts `(n, context_dim)`, each with a chance of 1 over the root of its rank by score."""
    rank = 1.0 + score.argsort(descending=True).argsort()
    return contexts[torch.multinomial(rank.rsqrt(), rows, replacement=True, generator=generator)]


def delivered(action: Tensor, gains: Tensor) -> Tensor:
    """What the actuators do, `(batch, act_dim)` in [-1, 1]: a motor cannot give more than the original one could."""
    return (gains * action).clamp(-1.0, 1.0)


def take_for_dead(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """See motors that were sent exactly 0 as dead ones that were sent anything.

    Args:
        batch: transitions whose observations end with the gains.
        share: of those motors.
        generator: draws which, and what they were sent.
    """
    obs, action, _, next_obs, _ = batch
    chance = torch.rand(action.shape, generator=generator, device=action.device)
    anything = 2.0 * torch.rand(action.shape, generator=generator, device=action.device) - 1.0
    dead = (action == 0) & (chance < share)
    keep = torch.cat([torch.ones_like(obs[:, action.shape[1] :]), (~dead).float()], -1)
    return batch._replace(obs=obs * keep, action=torch.where(dead, anything, action), next_obs=next_obs * keep)


class ActuatorAugWm(Mopo):
    """MOPO in world models whose actuators deliver more or less; takes what `Mopo` takes."""

    config: ActuatorAugWmConfig

    def __init__(
        self, config: ActuatorAugWmConfig, real: Tensor, model: DynamicsEnsemble, terminated: TerminationRule, seed: int
    ) -> None:
        self.change = Change(self._sent, self._moved if config.pushes else None)
        # Changes that the rollouts of the last epoch were made under, one a transition, and their scores.
        self.seen: list[tuple[Tensor, Tensor]] = []
        super().__init__(config, real, model, terminated, seed)

    @property
    def context_dim(self) -> int:
        """The pushes, and one gain for each actuator, where the policy is told."""
        return len(self.config.pushes) + self.act_dim if self.config.told else 0

    def _sent(self, action: Tensor, context: Tensor) -> Tensor:
        return delivered(action, context[:, len(self.config.pushes) :])

    def _moved(self, obs: Tensor, next_obs: Tensor, context: Tensor) -> Tensor:
        terms = torch.tensor(self.config.pushed, device=obs.device)
        return next_obs.index_add(1, terms, context[:, : len(terms)])

    def _input_scale(self) -> tuple[Tensor, Tensor]:
        mean, std = super()._input_scale()
        if not self.config.told:
            return mean, std
        spans = mean.new_tensor(self.config.push_spans)
        gains = draw_gains(10_000, self.act_dim, self.config, torch.Generator(mean.device).manual_seed(0))
        centre, spread = torch.zeros_like(spans), spans / 3**0.5
        return torch.cat([mean, centre, gains.mean(0)]), torch.cat([std, spread, gains.std(0)])

    def _rollout_context(self, rows: int) -> Tensor:
        pushes = [draw_pushes(rows, self.config, self.generator)] if self.config.pushes else []
        drawn = torch.cat([*pushes, draw_gains(rows, self.act_dim, self.config, self.generator)], -1)
        if self.config.regret_share == 0 or not self.seen:
            return drawn
        contexts, score = (torch.cat(part) for part in zip(*self.seen, strict=True))
        self.seen = []
        if not len(score):
            return drawn
        again = draw_by_rank(contexts, score, rows, self.generator)
        chance = torch.rand(rows, 1, generator=self.generator, device=drawn.device)
        return torch.where((chance < self.config.regret_share) & self._changed(drawn)[:, None], again, drawn)

    def _changed(self, context: Tensor) -> Tensor:
        """Where a world is another than the original one, `(batch,)` bool."""
        pushes, gains = context.split([len(self.config.pushes), self.act_dim], -1)
        return (gains != 1).any(-1) | (pushes != 0).any(-1)

    def _policy_input(self, obs: Tensor, context: Tensor | None) -> Tensor:
        if not self.config.told:
            return obs
        if context is None:
            pushes, gains = obs.new_zeros(len(obs), len(self.config.pushes)), obs.new_ones(len(obs), self.act_dim)
            context = torch.cat([pushes, gains], -1)
        return torch.cat([obs, context], -1)

    def _kept(self, batch: Batch, context: Tensor | None) -> Batch:
        next_obs = batch.next_obs
        if context is not None and self.config.pushes:
            next_obs = self._moved(batch.obs, next_obs, context)
        obs, next_obs = (self._policy_input(v, context) for v in (batch.obs, next_obs))
        kept = batch._replace(obs=obs, next_obs=next_obs)
        if context is not None and self.config.regret_share > 0:
            changed = self._changed(context)
            with torch.no_grad():
                self.seen.append((context[changed], positive_value_loss(self.sac, kept)[changed]))
        return kept

    def _learning_batch(self, batch: Batch) -> Batch:
        # An untold policy cannot know that a motor is dead, so to it the transition is the original robot's.
        return take_for_dead(batch, self.config.relabel, self.generator) if self.config.told else batch

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on bit-equal."""
        if not self.seen:
            return super().state_dict()
        contexts, score = (torch.cat(part) for part in zip(*self.seen, strict=True))
        return super().state_dict() | {"seen_contexts": contexts, "seen_scores": score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state)
        if "seen_scores" in state:
            contexts, score = (state[name].to(self.generator.device) for name in ("seen_contexts", "seen_scores"))
            self.seen = [(contexts, score)]
