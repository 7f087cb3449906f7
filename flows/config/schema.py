"""The configuration of a run: composes the rooms' configurations."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from stages.advantage.config import AdvantageConfig, Gae, Grpo, compares_groups, kl_of
from stages.contract.config import Config, deciding, operational
from stages.contract.paths import checked_name
from stages.evaluate.config import EvaluateConfig, PromotionConfig
from stages.model.config import CriticConfig
from stages.prompts.config import PromptsConfig, has_levels, parts_of
from stages.reward_model.config import RewardModelConfig
from stages.sample.config import LevelsCurriculum, SampleConfig
from stages.score.config import AverageReference, ScoreConfig
from stages.score.reward_config import RewardModelReward, reward_name
from stages.update.config import UpdateConfig
from stages.warmstart.config import WarmstartConfig

Gate = Literal["before_update", "before_promote"]


class HardwareConfig(Config):
    """The machine; may differ each time that a run is continued."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    threads: int | None = Field(default=None, gt=0)
    """Threads of torch on the CPU; null leaves it to torch. Another number may change the last bits of results."""
    deterministic: bool = True
    """Hold torch to deterministic algorithms, so that equal inputs give equal bytes at any load. An operation that has
    none is refused by name; false allows it."""


class KeepConfig(Config):
    """The retention rule. Tables, the starting policy, the last iteration and the promoted policy always stay."""

    last: int = Field(default=2, ge=1)
    """Policies of so many of the last iterations stay."""
    every: int | None = Field(default=None, gt=0)
    """Policies of each iteration that this divides stay; null: of none."""
    best: int = Field(default=1, ge=0)
    """So many policies of the highest held-out success stay, of those evaluated with the run's own settings."""
    optimizer: Literal["last", "kept"] = "last"
    """Optimizer states that stay: of the last iteration, or of each whose policy stays, so that it can be forked."""
    superseded: bool = True
    """Whether what reruns replaced stays."""


class NightsConfig(Config):
    """What a night may do: the flow `nightly` goes on with the run until one of its limits is reached."""

    iterations: int | None = Field(default=10, gt=0)
    """Iterations a night at most; null sets no limit."""
    hours: float | None = Field(default=6.0, gt=0)
    """No iteration begins that would not be over after so many hours; the evaluation comes after. null: no limit."""
    prompts: int | None = Field(default=None, gt=0)
    """Held-out prompts by which a night's policy is judged; null takes `evaluate.prompts`."""
    samples: int | None = Field(default=None, gt=0)
    """Completions of each of them; null takes `evaluate.samples`."""
    late: float = Field(default=4.0, gt=0)
    """Hours after its time up to which a night still begins; one that is later is left out."""

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.iterations is None and self.hours is None:
            raise ValueError("iterations and hours are both null, so that a night would never end: set one of them")
        return self


class RunConfig(Config):
    """A run."""

    run: str
    """Name of the run, and of its folder."""
    seed: int = 0
    """All randomness of the run derives from it."""
    iterations: int = Field(gt=0)
    """Iterations to train; a run can be continued with more."""
    convention: Literal["deepseekmath", "trl", "verl", "openrlhf", "open_instruct", "nemo"] | None = None
    """Details in which frameworks differ, as the one named here has them, wherever this configuration does not say them
    itself; what they are stands in `flows/config/conventions/<name>.yaml`. null takes this project's defaults."""
    prompts: PromptsConfig
    """Prompts: training and held-out."""
    warmstart: WarmstartConfig
    """The starting policy."""
    reward_model: RewardModelConfig | None = None
    """A reward model that is trained before the first iteration; null trains none."""
    sample: SampleConfig = SampleConfig()
    """Drawing completions."""
    score: ScoreConfig
    """Judging them."""
    advantage: AdvantageConfig = Grpo()
    """From rewards to advantages."""
    update: UpdateConfig = UpdateConfig()
    """Training."""
    critic: CriticConfig | None = None
    """The critic that `advantage.type: gae` needs; null for every other method."""
    evaluate: EvaluateConfig | None = EvaluateConfig()
    """Measuring on held-out prompts; null never does."""
    promotion: PromotionConfig = operational(PromotionConfig())
    """Which policy is held to be the best."""
    keep: KeepConfig | None = operational(None)
    """Which policies stay on the disk; other weights are removed after each iteration. null keeps all."""
    nights: NightsConfig = operational(NightsConfig())
    """What a night may do."""
    gate: Gate | None = operational(None)
    """Where someone has to approve before the run goes on: before each update, or before a promotion by a night."""
    hardware: HardwareConfig = HardwareConfig()
    """The machine."""

    @field_validator("run")
    @classmethod
    def _portable(cls, value: str) -> str:
        return checked_name(value)

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.update.kl.coefficient > 0 and self.score.reference is None:
            raise ValueError("update.kl.coefficient is above 0, which needs `score.reference: start`")
        if kl_of(self.advantage).coefficient > 0 and self.score.reference is None:
            raise ValueError("advantage.kl.coefficient is above 0, which needs `score.reference: start`")
        if compares_groups(self.advantage) and self.sample.group_size < 2:
            raise ValueError(
                f"sample.group_size is {self.sample.group_size}, but advantage.type {self.advantage.type} compares the "
                "completions of a group: use 2 or more, or another method"
            )
        if self.sample.rounds > 1 and getattr(self.advantage, "constant_groups", "keep") != "drop":
            raise ValueError(
                "sample.rounds is above 1, which adds prompts in place of constant groups: it needs an advantage.type "
                "that compares groups, with constant_groups: drop"
            )
        if isinstance(self.advantage, Gae) and self.critic is None:
            raise ValueError("advantage.type gae needs the values of a critic: add a section `critic: {}`")
        if self.critic is not None and not isinstance(self.advantage, Gae):
            raise ValueError(
                f"there is a critic, but advantage.type {self.advantage.type} gives it no returns to learn from: use "
                "gae, or set critic to null"
            )
        if isinstance(self.score.reference, AverageReference) and self.update.average is None:
            raise ValueError("score.reference average needs the average that `update.average: {decay: …}` keeps")
        if self.update.average is not None and self.update.lora is not None:
            raise ValueError(
                "update.average keeps whole models, update.lora trains an adapter: set one of them to null"
            )
        models = [reward for reward in self.score.rewards if isinstance(reward, RewardModelReward)]
        if self.reward_model is None and any(reward.path is None for reward in models):
            raise ValueError(
                "score.rewards: a reward_model without a path is the run's own: add a section `reward_model` that "
                "trains it, or name a folder with `path`"
            )
        return self

    @model_validator(mode="after")
    def _sampling_fits(self) -> Self:
        sampling = self.sample.sampling
        if sampling.temperature == 0:
            raise ValueError("sample.sampling.temperature is 0, which makes the completions of a group equal; use 1")
        if self.update.old_logprobs == "sampler" and (sampling.top_p < 1 or sampling.top_k > 0):
            raise ValueError("update.old_logprobs: sampler needs top_p 1 and top_k 0 in sample.sampling; use recompute")
        if self.update.old_logprobs == "sampler" and sampling.logprobs == "raw" and sampling.temperature != 1:
            raise ValueError(
                "update.old_logprobs: sampler needs sample.sampling.logprobs: processed, or a temperature of 1"
            )
        raw, cut = sampling.logprobs == "raw" and sampling.temperature != 1, sampling.top_p < 1 or sampling.top_k > 0
        weighs, penalises = self.update.mismatch is not None, kl_of(self.advantage).coefficient > 0
        if (raw or cut) and (weighs or penalises):
            name = "update.mismatch" if weighs else "advantage.kl.coefficient"
            raise ValueError(
                f"{name} compares the sampler's log-probabilities with the trainer's, which know no top_p or top_k: it "
                "needs top_p 1, top_k 0, and logprobs: processed or a temperature of 1 in sample.sampling"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_fits(self) -> Self:
        names = [reward_name(reward) for reward in self.score.rewards]
        if self.evaluate is not None:
            if self.prompts.heldout == 0 and self.prompts.heldout_source is None:
                raise ValueError("evaluate needs held-out prompts: set prompts.heldout, or evaluate to null")
            if self.evaluate.success is not None and self.evaluate.success not in names:
                raise ValueError(f"evaluate.success is {self.evaluate.success!r}; the rewards are named {names}")
            k = self.promotion.measure.removeprefix("pass_at_")
            if k.isdecimal() and int(k) not in self.evaluate.k:
                raise ValueError(f"promotion.measure is pass_at_{k}, but evaluate.k is {list(self.evaluate.k)}")
        return self

    @model_validator(mode="after")
    def _drawing_fits(self) -> Self:
        weights, curriculum = self.sample.weights, self.sample.curriculum
        parts = [part.name for part in parts_of(self.prompts.source).values()]
        if weights is not None and list(parts) == [None]:
            raise ValueError("sample.weights needs prompts.source.type: mixture, whose parts it names")
        if weights is not None and set(weights) != set(parts):
            raise ValueError(
                f"sample.weights names {sorted(weights)}, the parts of prompts.source are {parts}: name all"
            )
        names = [reward_name(reward) for reward in self.score.rewards]
        if curriculum is not None and curriculum.reward not in (None, *names):
            raise ValueError(f"sample.curriculum.reward is {curriculum.reward!r}; the rewards are named {names}")
        if isinstance(curriculum, LevelsCurriculum) and not any(
            has_levels(part.source) for part in parts_of(self.prompts.source).values()
        ):
            raise ValueError("sample.curriculum goes by levels: set `levels` or `level_field` of a source of prompts")
        return self

    def success(self) -> str:
        """Name of the reward that says what a success is."""
        chosen = self.evaluate.success if self.evaluate else None
        return chosen or reward_name(self.score.rewards[0])

    def section(self, stage: str) -> dict[str, Any]:
        """All configuration that decides a stage's output, as plain data."""
        dump = deciding(self)
        if stage == "evaluate":
            judged = {"rewards": dump["score"]["rewards"]}
            drawn = {name: dump["sample"][name] for name in ("sampling", "engine", "max_prompt_tokens")}
            return {"evaluate": dump["evaluate"], "score": judged, "sample": drawn}
        section: dict[str, Any] = dump[stage]
        if stage == "sample" and self.sample.rounds > 1:
            section |= {"score": {"rewards": dump["score"]["rewards"]}}
        if self.critic is not None and stage in ("score", "update"):
            section |= {"critic": dump["critic"] if stage == "update" else dump["critic"]["start"]}
        return section

    def made_alike(self, stage: str, section: dict[str, Any]) -> bool:
        """Whether `section`, from a manifest, decides the same as this configuration's.

        A field that came after the section was written had no other value then than its default has now.
        """
        wanted = self.section(stage)
        if section == wanted:
            return True
        others = {"critic", "score", "sample"}
        if section.keys() & others != wanted.keys() & others:
            return False
        data, own = self.model_dump(mode="json"), dict(section)
        if "critic" in own:
            critic = own.pop("critic")
            data["critic"] = critic if stage == "update" else data["critic"] | {"start": critic}
        for other in own.keys() & others:
            data[other] |= own.pop(other)
        data[stage] = own["evaluate"] if stage == "evaluate" else own
        try:
            return RunConfig.model_validate(data).section(stage) == wanted
        except ValidationError:
            return False
