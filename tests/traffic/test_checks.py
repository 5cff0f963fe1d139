"""What a traffic table may not be: each refusal names the field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.traffic.table import (
    Arm,
    Guardrail,
    ModelTraffic,
    Policy,
    Role,
    Rule,
    Shadow,
    Source,
)

TABLE = ModelTraffic(1, (Arm(1, Role.CHAMPION, 1.0), Arm(2, Role.CHALLENGER, 0.0)))
USER = Source("metadata", "x-user")
COUNTRY = Source("parameter", "country")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rules": (Rule(2, key="X-Region", value="test"),)}, "rules: metadata key"),
        ({"rules": (Rule(2, key="x region", value="test"),)}, "rules: metadata key"),
        ({"rules": (Rule(2, key="region-bin", value="test"),)}, "rules: metadata key"),
        ({"rules": (Rule(3, key="x-region", value="test"),)}, "rules: version 3"),
        ({"rules": (Rule(2),)}, "rules: one names neither"),
        ({"unit": Source("metadata", "x user")}, "unit and segments: metadata key"),
        ({"unit": Source("header", "x-user")}, "'header:x-user'"),
        ({"segments": (COUNTRY, COUNTRY)}, "segments: one is there twice"),
        ({"segments": (COUNTRY,), "unit": COUNTRY}, "segments: one is there twice"),
        ({"unit": Source("parameter", "priority")}, "'priority' means something"),
        ({"segments": (Source("parameter", "timeout"),)}, "'timeout' means something"),
        ({"unit": Source("parameter", "triton_x")}, "'triton_x' means something"),
        ({"unit": USER, "rules": (Rule(2, frozenset({"u" * 257})),)}, "rules: a unit"),
        ({"unit": USER, "rules": (Rule(2, frozenset({""})),)}, "rules: a unit"),
        ({"guardrails": (Guardrail("foo", 1.0),)}, "guardrails: 'foo' is not watched"),
        ({"guardrails": (Guardrail("error_rate", 0),)}, "guardrails: the limit"),
        ({"shadows": (Shadow(2),)}, "shadows: version 2 is an arm"),
        ({"shadows": (Shadow(3), Shadow(3))}, "shadows: a version is there twice"),
        ({"arms": (Arm(1, Role.CHAMPION, 0.9),)}, "arms: shares sum to 0.9"),
        ({"arms": (Arm(1, Role.CHALLENGER, 1.0),)}, "arms: exactly one"),
        ({"arms": (TABLE.arms[0], TABLE.arms[0])}, "arms: a version is there twice"),
        ({"policy": Policy(floor=1.5)}, "policy: floor"),
        ({"policy": Policy(contextual=True, floor=math.nan)}, "policy: floor"),
        ({"policy": Policy(shrinkage=math.nan)}, "policy: shrinkage must be a number"),
        ({"policy": Policy(shrinkage=math.inf)}, "policy: shrinkage must be a number"),
        ({"policy": Policy(min_rewards=-1)}, "policy: min_rewards must be a number"),
        ({"policy": Policy(discount=math.nan)}, "policy: discount"),
        ({"policy": Policy(label_delay_s=math.inf)}, "policy: label_delay_s"),
        ({"policy": Policy(refresh_s=math.nan)}, "policy: refresh_s"),
        (
            {"guardrails": (Guardrail("error_rate", math.inf),)},
            "guardrails: the limit of error_rate must be a number",
        ),
        (
            {"shadows": (Shadow(3, sample=math.nan),)},
            "shadows: version 3 has a sample of nan",
        ),
        (
            {"arms": (Arm(1, Role.CHAMPION, math.nan), TABLE.arms[1])},
            "arms: version 1 has a share of nan",
        ),
        (
            {"arms": (Arm(1, Role.CHAMPION, 90), Arm(2, Role.CHALLENGER, 10))},
            "arms: version 1 has a share of 90; .* such as 0.9 for 90 %",
        ),
        ({"arms": (Arm(-1, Role.CHAMPION, 1.0),)}, "arms: version -1: versions are"),
        ({"policy": Policy(contextual=True)}, "policy: contextual needs segments"),
    ],
)
def test_a_table_that_cannot_be_says_why(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        dataclasses.replace(TABLE, **changes).check()


def test_a_table_that_can_be_passes() -> None:
    dataclasses.replace(
        TABLE,
        rules=(Rule(2, key="x-region", value="test"),),
        unit=Source("metadata", "x-user"),
        segments=(COUNTRY,),
        shadows=(Shadow(3),),
        guardrails=(Guardrail("latency_p99_ms", 50.0),),
    ).check()
