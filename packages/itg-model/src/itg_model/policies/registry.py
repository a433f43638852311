"""What a policy is: its name, its parameters, what else it needs and where it was published.

The registry is the only list of policies. A chapter adds to it with `register`; the call, the
command line and the evaluation read it, so a parameter is declared, checked and documented once.
"""

import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Axis = Literal["T", "T+1", "D"] | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Number:
    """A parameter that is a number."""

    name: str
    default: float
    doc: str
    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    off: float | None = None
    """A value out of range that is allowed: it stands for not used."""

    def parse(self, value: Any, num_scores: int | None) -> float | int:
        """Checks a value and gives it as an `int` or a `float`."""
        try:
            # an index is a whole number of any library; bool is one too, and never meant
            number = operator.index(value) if self.whole else float(value)
            in_range = self.least <= number <= self.most or number == self.off
            sound = in_range and not isinstance(value, bool | str)
        except (TypeError, ValueError, OverflowError):
            sound, number = False, 0
        if not sound or not math.isfinite(number):
            raise ValueError(f"{self.name} must be {self.describe()}, got {value!r}")
        return number

    def parse_text(self, text: str) -> float | int:
        """Reads a value from a command line."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            raise ValueError(f"{self.name} must be {self.describe()}, got {text!r}") from None
        return self.parse(value, None)

    def describe(self) -> str:
        """Says in words what values are allowed."""
        words = "a whole number" if self.whole else "a number"
        if math.isfinite(self.most):
            words += f" in {self.least:g}..{self.most:g}"
        elif math.isfinite(self.least):
            words += f" >= {self.least:g}"
        return words if self.off is None else f"{words}, or {self.off:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Array:
    """A parameter that is an array: something known of every frame, or of the question."""

    name: str
    shape: tuple[Axis, ...]
    """T is the number of scores, D any width, the same in all arrays of a policy."""
    doc: str
    required: bool = False
    ascending: bool = False

    @property
    def per_score(self) -> bool:
        """Whether there is one row to each score."""
        return self.shape[0] == "T"

    def parse(self, value: Any, num_scores: int | None) -> Floats | None:
        """Checks a value and gives it as an array of floats; its precision is kept.

        Args:
            value: Anything that numpy reads, or None.
            num_scores: T, or None where it is not known yet.
        """
        if value is None and not self.required:
            return None
        try:
            array = to_array(value)
            if array.dtype.kind != "f":
                array = array.astype(np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.name} must be an array of numbers, got {value!r}") from None
        if array.ndim != len(self.shape) or not all(
            self._fits(axis, length, num_scores)
            for axis, length in zip(self.shape, array.shape, strict=True)
        ):
            wanted = ", ".join(str(axis) for axis in self.shape)
            known = "" if num_scores is None else f" with T = {num_scores}"
            raise ValueError(f"{self.name} must be [{wanted}]{known}, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{self.name} must be finite, got {array[~np.isfinite(array)][0]}")
        if self.ascending and (np.diff(array) < 0).any():
            first = int(np.flatnonzero(np.diff(array) < 0)[0])
            raise ValueError(
                f"{self.name} must not descend, got {array[first]:g} before {array[first + 1]:g}"
            )
        return array

    def _fits(self, axis: Axis, length: int, num_scores: int | None) -> bool:
        if axis == "D" or (num_scores is None and not isinstance(axis, int)):
            return True
        scores = num_scores or 0
        return length == {"T": scores, "T+1": scores + 1}.get(str(axis), axis)


Choose = Callable[..., Indices]
"""Called as `choose(scores, k, parity=..., **parameters)`.

In parity: [T] scores of the caller's precision, any values, any k >= 1; gives what the authors
give, in their order. Otherwise: [T] finite float64 scores, k in 1..T; gives k distinct places in
any order.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """An entry of the registry."""

    name: str
    summary: str
    """What it does, in one line."""
    source: str
    """URL of what the authors published; for our own policies, where they are defined."""
    parameters: tuple[Number | Array, ...]
    choose: Choose
    looks_at_scores: bool = True
    """False where the scores say only how many frames there are."""
    picks_scored_frames: bool = True
    """False where the places chosen are not among those scored, but on a finer grid."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the array parameters: what it can use apart from the scores."""
        return tuple(p.name for p in self.parameters if isinstance(p, Array))

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the arrays without which it cannot choose."""
        return tuple(p.name for p in self.parameters if isinstance(p, Array) and p.required)

    def parse(self, params: Mapping[str, Any], num_scores: int | None) -> dict[str, Any]:
        """Checks parameters and adds the defaults of those not given.

        Args:
            params: Values by name.
            num_scores: T; None before it is known, which leaves arrays of that length unchecked.

        Raises:
            ValueError: A parameter is unknown, missing, of the wrong type or shape, or out of
                range; the message names policy, parameter and value.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name, value in params.items():
            if name not in known:
                takes = ", ".join(known) or "none"
                raise ValueError(
                    f"policy {self.name}: unknown parameter {name}={value!r}; it takes {takes}"
                )
        parsed: dict[str, Any] = {}
        for name, parameter in known.items():
            if name not in params:
                if isinstance(parameter, Array) and parameter.required:
                    raise ValueError(f"policy {self.name}: {name} is missing: {parameter.doc}")
                parsed[name] = parameter.default if isinstance(parameter, Number) else None
                continue
            try:
                parsed[name] = parameter.parse(params[name], num_scores)
            except ValueError as error:
                raise ValueError(f"policy {self.name}: {error}") from None
        return parsed


_POLICIES: dict[str, Policy] = {}


def register(
    name: str,
    *,
    summary: str,
    source: str,
    parameters: tuple[Number | Array, ...] = (),
    looks_at_scores: bool = True,
    picks_scored_frames: bool = True,
) -> Callable[[Choose], Choose]:
    """Adds the decorated function to the registry; the arguments are the fields of `Policy`."""

    def add(choose: Choose) -> Choose:
        _POLICIES[name] = Policy(
            name=name,
            summary=summary,
            source=source,
            parameters=parameters,
            choose=choose,
            looks_at_scores=looks_at_scores,
            picks_scored_frames=picks_scored_frames,
        )
        return choose

    return add


def policy_names() -> tuple[str, ...]:
    """Names of all policies, sorted."""
    return tuple(sorted(_POLICIES))


def policy_info(name: str) -> Policy:
    """What a policy does, takes and rests on.

    Raises:
        ValueError: No such policy.
    """
    if name not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(policy_names())}, got {name!r}")
    return _POLICIES[name]


def check_policy(name: str, k: int, params: Mapping[str, Any]) -> None:
    """Checks a request before there are scores: a video should not be decoded for a typo.

    Raises:
        ValueError: As `select_frames` raises.
    """
    check_whole("k", k, 1)
    policy_info(name).parse(params, None)


def parse_policy_params(name: str, texts: Sequence[str]) -> dict[str, float]:
    """Reads a policy's numbers from a command line, each as `NAME=VALUE`.

    Raises:
        ValueError: One has no `=`, comes twice, is unknown to the policy, or is no number that it
            allows; or there is no such policy.
    """
    takes = {p.name: p for p in policy_info(name).parameters if isinstance(p, Number)}
    params: dict[str, float] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or key not in takes or key in params:
            wants = f"NAME=VALUE with NAME one of {', '.join(takes)}, each once"
            raise ValueError(
                f"--policy-param: {name} takes {wants if takes else 'none'}, got {text!r}"
            )
        try:
            params[key] = takes[key].parse_text(value)
        except ValueError as error:
            raise ValueError(f"--policy-param: {name}: {error}") from None
    return params


def to_array(value: Any) -> npt.NDArray[Any]:
    """Reads what numpy reads, and tensors of any device and type, with or without a gradient."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    if torch is None or not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu()
    # numpy knows no bfloat16, and float32 holds each of its values
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def check_whole(name: str, value: int, least: int) -> int:
    """Checks a number of frames or the like, of any library.

    Raises:
        ValueError: Not a whole number, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    return number


def describe_policy(name: str, params: Mapping[str, Any]) -> str:
    """Names a policy and the parameters given to it, for records: `aks(depth=3, t1=0.2)`.

    Arrays are data, not settings, and left out.
    """
    numbers = {p.name for p in policy_info(name).parameters if isinstance(p, Number)}
    words = [f"{key}={_spell(params[key])}" for key in sorted(params) if key in numbers]
    return f"{name}({', '.join(words)})" if words else name


def _spell(number: float) -> str:
    """Writes a number as briefly as tells it from every other."""
    if isinstance(number, int):
        return str(number)
    brief = f"{number:g}"
    return brief if float(brief) == number else repr(float(number))
