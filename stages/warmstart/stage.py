"""The stage `warmstart`: a model, training prompts → the starting policy, as iteration 0's `update`."""

from pathlib import Path
from typing import Any, assert_never

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.contract import tables
from stages.contract.columns import DEMONSTRATIONS, PROMPTS, SUPERVISED_STEPS
from stages.contract.config import deciding
from stages.contract.errors import ConfigError, DataError
from stages.contract.policy import base_of, take_policy
from stages.contract.seeds import derive
from stages.contract.workspace import Job, Workspace, open_stage
from stages.model.adapter import is_adapted, merge_adapter
from stages.model.load import context_length, load_model, load_tokenizer, save_policy
from stages.model.logprobs import check_head
from stages.model.render import Format, encode, render
from stages.warmstart.config import (
    AnswerDemonstrations,
    FileDemonstrations,
    FolderModel,
    NewModel,
    RunModel,
    TuningConfig,
    WarmstartConfig,
)
from stages.warmstart.demonstrations import from_answers, from_file
from stages.warmstart.new_model import character_tokenizer, new_model
from stages.warmstart.tune import tune


def run(job: Job, config: WarmstartConfig, policy_of_run: Path | None = None) -> None:
    """Writes the starting policy; `policy_of_run` is the folder of the policy that a model of type `run` names."""
    with open_stage(job, "warmstart", "update", deciding(config)) as desk:
        parent = config.model.path if isinstance(config.model, FolderModel) else policy_of_run
        with desk.timed("load"):
            model, tokenizer = _model(desk, config, parent, job.seed, job.device)
            check_head(model)
        if config.tuning is not None:
            _tune(job, desk, model, tokenizer, config.tuning)
        with desk.timed("save"):
            policy = desk.folder / "policy"
            save_policy(model, policy, (base_of(parent) or parent) if parent else None)
            if parent is None:
                tokenizer.save_pretrained(policy)
        desk.notes["parameters"] = sum(p.numel() for p in model.parameters())


def _model(
    desk: Workspace, config: WarmstartConfig, parent: Path | None, seed: int, device: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    match config.model:
        case NewModel():
            tokenizer = character_tokenizer(config.model.characters)
            model: Any = new_model(config.model, tokenizer, derive(seed, "model"))
            return model.to(device).eval(), tokenizer
        case FolderModel(path=Path() as path):
            if base_of(path) is not None:
                raise ConfigError(f"warmstart.model.path: {path} is an adapter; merge it with its base model first")
            tokenizer_of_folder = load_tokenizer(path)
            desk.take_folder(path)
            return load_model(path, device), tokenizer_of_folder
        case RunModel(run=name):
            assert parent is not None, "whoever knows the runs says where it is"
            take_policy(desk, parent)
            desk.notes["phase"] = {"run": name, "iteration": int(parent.parents[1].name)}
            loaded = load_model(parent, device)
            if is_adapted(loaded):
                merge_adapter(loaded)
            return loaded, load_tokenizer(parent)
        case _:
            assert_never(config.model)


def _tune(
    job: Job,
    desk: Workspace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tuning: TuningConfig,
) -> None:
    prompts = desk.read(job.paths.stage(0, "prompts") / "train.parquet", PROMPTS)
    kind: Format = prompts["format"][0]
    match tuning.demonstrations:
        case AnswerDemonstrations() as made:
            texts = [render(tokenizer, messages, kind) for messages in prompts["messages"].to_list()]
            rows = from_answers(prompts, texts, made, derive(job.seed, "demonstrations"))
        case FileDemonstrations(path=path):
            rows = from_file(path, lambda text: render(tokenizer, [{"role": "user", "content": text}], kind))
            desk.take(path)
        case _:
            assert_never(tuning.demonstrations)
    desk.write("demonstrations.parquet", rows, DEMONSTRATIONS)
    pairs = [
        (encode(tokenizer, prompt, kind), [*encode(tokenizer, completion, "chat"), int(tokenizer.eos_token_id)])
        for prompt, completion in rows.select("prompt", "completion").iter_rows()
    ]
    context = context_length(model)
    fitting = [(prompt, completion) for prompt, completion in pairs if prompt and len(prompt + completion) <= context]
    desk.drop(f"demonstration without a prompt or longer than {context} tokens", len(pairs) - len(fitting))
    if not fitting:
        raise DataError(f"warmstart.tuning.demonstrations: none of {len(pairs)} fits the context of {context} tokens")
    with desk.timed("train"):
        steps = tune(model, fitting, tuning, derive(job.seed, "warmstart"), job.device, job.progress)
    columns = {field.name: [step[field.name] for step in steps] for field in SUPERVISED_STEPS.fields}
    desk.write("supervised_steps.parquet", tables.frame(SUPERVISED_STEPS, columns), SUPERVISED_STEPS)
    desk.metrics |= {"loss": steps[-1]["loss"], "optimizer_steps": float(len(steps))}
