"""A language model as judge, asked by the `openai` client. Its answers are kept: asked again, it may say others."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stages.contract.errors import ConfigError, JudgeError
from stages.contract.progress import Progress, no_progress
from stages.score.reward_config import JudgeReward
from stages.score.verdict import Item, Mark, error, ok, timeout

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

GIVE_UP = 2
"""Requests in a row, for each that may be under way, that were not answered and after which no more are sent."""
CLIENT = "the reward judge needs `pip install 'grpo-flows[judge]'`"
REFUSALS = {401: "the key is not accepted", 403: "the key does not allow it", 404: "there is no such model or address"}
ABSENT = {401, 408, 409, 429}
"""Codes below 500 that say nothing of what was asked, as all from 500 on; with others the endpoint answers a row."""


def judge(reward: JudgeReward, items: Sequence[Item], progress: Progress = no_progress) -> list[Mark]:
    """The judge's number for each item, divided by the scale; a request that fails is an error of its item.

    Raises:
        ConfigError: the `openai` client or the key is missing.
        JudgeError: the endpoint has answered nothing at all, or nothing but that it refuses the key or the model.
    """
    if not items:
        return []
    key = _key(reward)
    marks, heard = asyncio.run(_judge(reward, items, key, progress))
    if not heard:
        raise JudgeError(f"the judge {reward.model} answered none of {len(items)} requests: {marks[0].message}")
    return marks


def check_reachable(reward: JudgeReward) -> None:
    """Checks what can be checked without asking: the client, and the key where no block may hold it.

    Raises:
        ConfigError: one of them is missing.
    """
    if find_spec("openai") is None:
        raise ConfigError(CLIENT)
    if reward.key_block is None:
        _key(reward)


def question(reward: JudgeReward, item: Item) -> str:
    """What the judge is asked about an item."""
    asked = [message["content"] for message in item.messages]
    if len(asked) > 1:
        asked = [f"{message['role']}: {message['content']}" for message in item.messages]
    return reward.template.format(
        prompt="\n".join(asked),
        completion=item.completion,
        rubric=reward.rubric,
        scale=reward.scale,
        answer=item.answer or "",
    )


def schema(reward: JudgeReward) -> dict[str, Any]:
    """The form of a judgement."""
    reasons = {"reasons": {"type": "string"}} if reward.reasons else {}
    fields = reasons | {"score": {"type": "integer", "enum": list(range(reward.scale + 1))}}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def judgement(reward: JudgeReward, text: str) -> Mark:
    """The mark that a judge's answer stands for."""
    try:
        score = json.loads(text)["score"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return error(f"the judge's answer is not the JSON that was asked for: {text!r:.100}")
    if type(score) is not int or not 0 <= score <= reward.scale:
        return error(f"the judge gave {score!r:.40}, which is no whole number from 0 to {reward.scale}")
    return ok(score / reward.scale)


def _key(reward: JudgeReward) -> str:
    if reward.key is None:
        return "none"  # the client wants one
    if not (key := os.environ.get(reward.key) or reward.secret):
        raise ConfigError(
            f"the judge {reward.model} wants its key in the environment variable {reward.key}, which is not set; set "
            "it, name a Prefect Secret block in `key_block`, or set `key` to null if the endpoint asks for none"
        )
    return key


async def _judge(reward: JudgeReward, items: Sequence[Item], key: str, progress: Progress) -> tuple[list[Mark], bool]:
    """The marks, and whether the endpoint has answered any row: with a judgement, or that it cannot judge this one."""
    try:
        from openai import AsyncOpenAI
    except ModuleNotFoundError as failure:
        raise ConfigError(CLIENT) from failure
    places = asyncio.Semaphore(reward.concurrency)
    done, lost, last, heard = 0, 0, "", False

    async def one(client: "AsyncOpenAI", item: Item) -> Mark:
        nonlocal done, lost, last, heard
        async with places:
            if lost >= GIVE_UP * reward.concurrency:
                mark = error(f"not asked, after {lost} requests in a row had no answer, the last one: {last}")
            else:
                mark, code = await _ask(reward, client, item)
                message = (mark.message or "").replace(key, "…") if reward.key else mark.message
                mark = replace(mark, message=message or None)
                if _answered(code, heard):
                    heard, lost = True, 0
                else:
                    lost, last = lost + 1, message or ""
        done += 1
        progress(done, len(items))
        return mark

    async with AsyncOpenAI(
        base_url=reward.url, api_key=key, max_retries=reward.retries, timeout=reward.timeout
    ) as client:
        return list(await asyncio.gather(*(one(client, item) for item in items))), heard


def _answered(code: int | None, heard: bool) -> bool:
    """Whether a code is the endpoint's answer to a row; None stands for no answer, or none of a judge.

    A gateway refuses single rows (403, by its content policy) with the codes of a wrong key or model; it is that only
    where the endpoint has answered others.
    """
    if code is None or code >= 500 or code in ABSENT:
        return False
    return heard or code not in REFUSALS


async def _ask(reward: JudgeReward, client: "AsyncOpenAI", item: Item) -> tuple[Mark, int | None]:
    """A mark, and the code of the answer that it comes from; a judge's words are its note."""
    import openai

    whole = reward.timeout * (reward.retries + 1)
    form: Any = {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema(reward)}}
    try:
        async with asyncio.timeout(whole):
            response = await client.chat.completions.with_raw_response.create(
                model=reward.model,
                messages=[{"role": "user", "content": question(reward, item)}],
                response_format=form,
                max_completion_tokens=reward.max_tokens,
                temperature=openai.omit if reward.temperature is None else reward.temperature,
            )
            answer = response.parse()
    except (openai.APITimeoutError, TimeoutError):
        return timeout(whole), None
    except openai.APIStatusError as failure:
        code = failure.status_code
        said = failure.message.removeprefix(f"Error code: {code} - ")
        return error(f"the judge answered {code}: {REFUSALS[code] + ': ' if code in REFUSALS else ''}{said}"), code
    except openai.APIError as failure:
        why = failure.__cause__ or type(failure).__name__
        return error(f"the judge gave no answer: {failure.message} ({why})"), None
    except (ValueError, TypeError) as failure:
        return error(f"the judge's answer cannot be read: {failure}"), None
    mark = _mark(reward, answer, response.retries_taken)
    return mark, 200 if mark.note else None


def _mark(reward: JudgeReward, said: "ChatCompletion", retries: int) -> Mark:
    try:
        choice, usage = said.choices[0], said.usage
        text, refusal, ended = choice.message.content, choice.message.refusal, choice.finish_reason
    except (AttributeError, IndexError, TypeError):
        return error(f"the judge's answer is no chat completion: {said!r:.100}")
    if ended == "length":
        mark = error(f"the judge's answer was cut at max_tokens ({reward.max_tokens})")
    elif text is None:
        mark = error(f"the judge refuses: {refusal}")
    else:
        mark = judgement(reward, text)
    note = {"said": text, "model": said.model, "retries": retries}
    told = {name: getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")}
    tokens = {name: count for name, count in told.items() if type(count) is int}  # the client does not look
    return replace(mark, note=json.dumps(note | tokens))
