"""Which arm answers, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.catalogue import (
    BatchPolicy,
    Catalogue,
    ModelEntry,
    QueuePolicy,
    State,
    VersionEntry,
)
from gateway.errors import NotReady, UnknownModel
from gateway.protocol.inference_pb2 import InferParameter, ModelInferRequest
from gateway.serving.admission import Admission
from gateway.serving.dispatch import Dispatcher
from gateway.serving.infer import InferService, UnaryExchange
from gateway.serving.mirrors import Mirror, Way
from gateway.serving.routing import Router
from gateway.serving.shadow import Shadows
from gateway.serving.sink import MemorySink, Record
from gateway.serving.state import FrontState
from gateway.serving.values import entry_text, text_of
from gateway.traffic.table import (
    MODEL_TRAFFIC,
    Arm,
    ModelTraffic,
    Policy,
    PolicyKind,
    Role,
    Rule,
    Shadow,
    Source,
    Weights,
)
from tests.unit.simulation import FakeLoop
from workers.spec import ModelSpec, TensorSpec

SPEC = ModelSpec((TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (1,)),), 8)
USER = Source("metadata", "x-user")
UNIT = Source("parameter", "user")
COUNTRY = Source("parameter", "country")


def entry(version: int, state: State = State.READY) -> VersionEntry:
    return VersionEntry(
        version=version,
        state=state,
        reason="" if state is State.READY else "it broke",
        handle=version,
        spec=SPEC,
        batching=BatchPolicy(8, 1 << 20),
        queue=QueuePolicy(1 << 20),
    )


def arms(*shares: float) -> tuple[Arm, ...]:
    roles = (Role.CHAMPION, *(Role.CHALLENGER for _ in shares[1:]))
    return tuple(
        Arm(version, role, share)
        for version, (role, share) in enumerate(zip(roles, shares, strict=True), 1)
    )


class Call:
    """A call with metadata."""

    def __init__(self, **metadata: str) -> None:
        self.values = {key.replace("_", "-"): value for key, value in metadata.items()}

    def metadata(self, key: str) -> str | None:
        """Return a request header."""
        return self.values.get(key)


class Service:
    """An inference service without workers, whose versions 1 to 3 are ready."""

    def __init__(
        self, traffic: ModelTraffic | None, *states: State, **others: ModelTraffic
    ) -> None:
        self.loop = FakeLoop()
        versions = dict(enumerate(states or (State.READY,) * 3, 1))
        entries = {
            version: entry(version, state) for version, state in versions.items()
        }
        names = ("m", *others)
        models = {name: ModelEntry(name, entries) for name in names}
        catalogue = Catalogue(ready=True, models=models)
        for name, table in others.items():
            catalogue = catalogue.with_traffic(name, table)
        if traffic is not None:
            traffic.check()
            catalogue = catalogue.with_traffic("m", traffic)
        self.state = FrontState()
        self.state.swap(catalogue)
        admission = Admission(1 << 30, 25)
        dispatcher = Dispatcher(
            self.loop,  # type: ignore[arg-type]
            self.loop.now_ns,
            admission,
            max_attempts=1,
            pushback_ms=25,
        )
        self.sink = MemorySink(100)
        self.infer = InferService(
            self.state,
            dispatcher,
            admission,
            now_ns=self.loop.now_ns,
            default_timeout_ns=10**10,
            max_stream_inflight=16,
            max_stream_bytes=1 << 20,
            sink=self.sink,
            shadows=Shadows(
                self.loop,  # type: ignore[arg-type]
                dispatcher,
                admission,
                self.sink,
                now_ns=self.loop.now_ns,
                max_bytes=1 << 30,
            ),
        )

    def ask(self, call: Any = None, **parameters: InferParameter) -> UnaryExchange:
        message = request(**parameters)
        exchange = self.infer.begin(UnaryExchange, message, 0, call or Call())
        exchange.cancel()
        if exchange.choice is not None:
            exchange.choice.tally.answered += 1
        return exchange


def request(
    version: str = "", id_: str = "1", model: str = "m", **parameters: InferParameter
) -> bytes:
    made = ModelInferRequest(model_name=model, model_version=version, id=id_)
    for name, value in parameters.items():
        made.parameters[name].CopyFrom(value)
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    made.raw_input_contents.append(bytes(8))
    return made.SerializeToString()


def _value_first(message: bytes) -> bytes:
    """Write every parameter with its value before its name, as protobuf allows."""
    made = ModelInferRequest.FromString(message)
    parameters = dict(made.parameters)
    made.ClearField("parameters")
    entries = b""
    for key, value in parameters.items():
        name, content = key.encode(), value.SerializeToString()
        pair = b"\x12" + _length(content) + content + b"\x0a" + _length(name) + name
        entries += b"\x22" + _length(pair) + pair
    rest = ModelInferRequest(model_name=made.model_name, id=made.id)
    start = len(rest.SerializeToString())
    body = made.SerializeToString()
    return body[:start] + entries + body[start:]


def _length(content: bytes) -> bytes:
    size = len(content)
    return bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])


def text(value: str) -> InferParameter:
    return InferParameter(string_param=value)


@pytest.fixture
def numbers() -> Iterator[float]:
    """Draws that fall evenly over [0, 1)."""
    return (number / 1000 % 1 for number in count())


def test_without_a_table_the_highest_ready_version_answers() -> None:
    exchange = Service(None).ask()
    assert exchange.plan.entry.version == 3
    assert exchange.choice is None


def test_draws_follow_the_shares(numbers: Iterator[float]) -> None:
    traffic = ModelTraffic(revision=7, arms=arms(0.7, 0.25, 0.05))
    ready = {version: entry(version) for version in (1, 2, 3)}
    router = Router(traffic, ready, draw=numbers.__next__)
    drawn = [router.choose(Call(), {}, None) for _ in range(1000)]
    found = Counter(router.entries[index].version for index, *_ in drawn)
    assert found == {1: 700, 2: 250, 3: 50}
    for index, choice, _ in drawn:
        assert choice.version == router.entries[index].version
        assert choice.propensity == pytest.approx(traffic.arms[index].share)
        assert (choice.policy, choice.revision, choice.snapshot) == ("fixed", 7, 0)
        assert "tally" not in choice.described()


def test_new_weights_are_in_force_at_once_and_forget_no_plan() -> None:
    policy = Policy(PolicyKind.THOMPSON)
    service = Service(ModelTraffic(arms=arms(1, 0), policy=policy))
    assert service.ask().choice.version == 1  # type: ignore[union-attr]
    plans = dict(service.infer._plans)
    service.infer.routers.reweigh("m", Weights(4, (0.0, 1.0)))
    choice = service.ask().choice
    assert choice is not None
    assert (choice.version, choice.propensity, choice.snapshot) == (2, 1.0, 4)
    assert service.infer._plans == plans
    assert service.infer.routers.arms() == {"m": {1: 1, 2: 1}}


def test_a_new_table_starts_over() -> None:
    service = Service(ModelTraffic(arms=arms(1, 0), policy=Policy(PolicyKind.THOMPSON)))
    service.infer.routers.reweigh("m", Weights(4, (0.0, 1.0)))
    assert service.ask().choice.version == 2  # type: ignore[union-attr]
    table = ModelTraffic(revision=2, arms=arms(1, 0))
    service.state.swap(service.state.catalogue.with_traffic("m", table))
    assert service.ask().choice.version == 1  # type: ignore[union-attr]
    assert service.infer.routers.arms() == {"m": {1: 1, 2: 1}}, "counts survive"


def version_of(service: Service, model: str) -> int:
    message = request(model=model)
    exchange = service.infer.begin(UnaryExchange, message, 0, Call())
    exchange.cancel()
    assert exchange.choice is not None
    exchange.choice.tally.answered += 1
    return exchange.plan.entry.version


def test_a_change_of_one_model_forgets_nothing_of_others() -> None:
    first = ModelTraffic(arms=arms(1))
    service = Service(first, longer=first)
    for model in ("m", "longer") * 3:
        assert version_of(service, model) == 1
    infer = service.infer
    plans, layouts = infer._plans, infer._layouts
    assert len(plans) == len(layouts) == 2
    table = ModelTraffic(arms=(Arm(2, Role.CHAMPION, 1),))
    changed = service.state.catalogue.with_traffic("longer", table)
    service.state.swap(changed, ("longer",))
    assert version_of(service, "m") == 1
    (kept,) = infer._plans.items()
    (known,) = infer._layouts.items()
    assert kept in plans.items()
    assert known in layouts.items()
    assert kept[1].model == known[1].plan.model == "m"
    assert version_of(service, "longer") == 2
    assert infer.routers.arms() == {"m": {1: 4}, "longer": {1: 3, 2: 1}}


def test_a_new_unit_of_one_model_forgets_the_forms_of_all() -> None:
    first = ModelTraffic(arms=arms(1, 0))
    service = Service(first, other=first)
    value = text("7")
    assert service.ask(user=value).plan.entry.version == 1
    assert service.infer._plans
    table = ModelTraffic(arms=arms(1, 0), unit=Source("parameter", "user"))
    service.state.swap(service.state.catalogue.with_traffic("other", table), ("other",))
    assert version_of(service, "other") == 1
    assert {plan.model for plan in service.infer._plans.values()} == {"other"}


@pytest.mark.parametrize("down", [State.LOADING, State.UNAVAILABLE])
def test_an_arm_that_does_not_serve_gets_nothing(down: State) -> None:
    """The others share what it had, and say so in their propensities."""
    service = Service(
        ModelTraffic(arms=arms(0.5, 0.4, 0.1)), State.READY, down, State.READY
    )
    choices = [service.ask().choice for _ in range(200)]
    found = {choice.version: choice.propensity for choice in choices if choice}
    assert found == {1: pytest.approx(5 / 6), 3: pytest.approx(1 / 6)}


def test_no_arm_with_a_share_serves() -> None:
    service = Service(ModelTraffic(arms=arms(1, 0)), State.UNAVAILABLE, State.READY)
    with pytest.raises(NotReady, match="'m' version 1 is not at ready state: it broke"):
        service.ask()


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True)
)
def test_an_arm_without_weight_is_never_drawn(raw: list[float], drawn: float) -> None:
    total = sum(raw)
    if not total:
        return
    weights = tuple(weight / total for weight in raw)
    traffic = ModelTraffic(arms=arms(1, *(0.0 for _ in raw[1:])))
    ready = {version: entry(version) for version in range(1, len(raw) + 1)}
    router = Router(traffic, ready, Weights(1, weights), draw=lambda: drawn)
    index, choice, _ = router.choose(Call(), {}, None)
    assert weights[index] > 0
    assert choice.propensity == pytest.approx(weights[index])


def test_versions_and_aliases_are_asked_for_by_name() -> None:
    service = Service(ModelTraffic(arms=arms(1, 0), aliases={"next": 3, "old": 9}))
    find = service.state.catalogue.find
    assert find("m", "").version == 1
    assert find("m", "2").version == 2
    assert find("m", "next").version == 3
    with pytest.raises(UnknownModel, match="version 9"):
        find("m", "old")
    with pytest.raises(
        UnknownModel, match=r"no alias 'other' \(there are: next, old\)"
    ):
        find("m", "other")
    exchange = service.infer.begin(UnaryExchange, request("next"), 0, Call())
    assert exchange.plan.entry.version == 3
    assert exchange.choice is None


def test_a_shadow_is_not_the_latest() -> None:
    service = Service(ModelTraffic(shadows=(Shadow(3),)))
    assert service.ask().plan.entry.version == 2


class TestRules:
    traffic = ModelTraffic(
        arms=arms(1, 0, 0),
        unit=USER,
        rules=(
            Rule(2, units=frozenset({"ann", "bob"})),
            Rule(3, key="x-region", value="eu"),
        ),
    )

    @pytest.mark.parametrize(
        ("call", "version", "policy"),
        [
            (Call(), 1, "fixed"),
            (Call(x_user="ann"), 2, "rule"),
            (Call(x_user="carl"), 1, "fixed"),
            (Call(x_region="eu"), 3, "rule"),
            (Call(x_region="us"), 1, "fixed"),
            (Call(x_user="bob", x_region="eu"), 2, "rule"),
        ],
    )
    def test_they_come_before_the_policy(
        self, call: Call, version: int, policy: str
    ) -> None:
        exchange = Service(self.traffic).ask(call)
        assert exchange.plan.entry.version == version
        assert exchange.choice is not None
        assert (exchange.choice.version, exchange.choice.policy) == (version, policy)
        assert exchange.choice.propensity == 1
        assert exchange.context.unit == call.values.get("x-user", "")

    def test_what_they_send_is_counted_apart(self) -> None:
        service = Service(self.traffic)
        for call in (Call(), Call(x_user="ann"), Call(x_user="bob"), Call()):
            service.ask(call)
        routers = service.infer.routers
        assert routers.arms() == {"m": {1: 2, 2: 2, 3: 0}}
        assert routers.arms(ruled=True) == {"m": {1: 0, 2: 2, 3: 0}}
        service.state.swap(service.state.catalogue)
        for call in (Call(), Call(x_user="ann")):
            service.ask(call)
        assert routers.arms() == {"m": {1: 3, 2: 3, 3: 0}}
        assert routers.arms(ruled=True) == {"m": {1: 0, 2: 3, 3: 0}}

    def test_of_an_arm_that_does_not_serve_they_do_not_hold(self) -> None:
        service = Service(self.traffic, State.READY, State.LOADING, State.READY)
        assert service.ask(Call(x_user="ann")).plan.entry.version == 1


class TestSticky:
    def traffic(self, unit: Source) -> ModelTraffic:
        policy = Policy(PolicyKind.STICKY)
        return ModelTraffic(arms=arms(0.5, 0.5), policy=policy, unit=unit, salt="s")

    @given(st.text(max_size=60), st.integers(0, 3))
    def test_a_unit_stays_wherever_it_is_found(self, unit: str, cut: int) -> None:
        """In metadata, in a parameter of a known form or of one seen first."""
        service = Service(self.traffic(UNIT))
        for name in ["warm", "up", "both", "arms"][:cut]:
            service.ask(user=text(name))
        found = service.ask(user=text(unit))
        again = service.ask(user=text(unit))
        other = Service(self.traffic(USER)).ask(Call(x_user=unit))
        assert found.context == again.context == other.context
        assert found.context.unit == unit
        if unit:
            assert found.choice == again.choice
            assert found.choice is not None
            assert other.choice is not None
            assert found.choice.described() == other.choice.described()
            assert 0 <= found.context.bucket < 10_000

    def test_requests_with_different_units_share_a_plan(self) -> None:
        service = Service(self.traffic(UNIT))
        found = [service.ask(user=text(f"user-{n}")).context.unit for n in range(300)]
        assert found == [f"user-{number}" for number in range(300)]
        assert len(service.infer._plans) == 1
        assert len(service.infer._layouts) == 3, "one for each length"

    def test_units_of_an_arm_that_does_not_serve_come_back_to_it(self) -> None:
        names = [f"u{number}" for number in range(200)]
        service = Service(self.traffic(USER))
        before = [service.ask(Call(x_user=name)).choice for name in names]
        models = service.state.catalogue.models["m"].versions
        less = {**models, 2: entry(2, State.LOADING)}
        whole = service.state.catalogue
        service.state.swap(replace(whole, models={"m": ModelEntry("m", less)}))
        meanwhile = {service.ask(Call(x_user=name)).choice for name in names}
        assert {choice.version for choice in meanwhile if choice} == {1}
        assert {choice.propensity for choice in meanwhile if choice} == {1}
        service.state.swap(whole)
        assert [service.ask(Call(x_user=name)).choice for name in names] == before

    def test_a_unit_of_another_model_is_a_value_like_any_other(self) -> None:
        """Were it cut out of the form, all would be served as the first one was."""
        segments = (Source("parameter", "user"),)
        traffic = ModelTraffic(arms=arms(0.5, 0.5), segments=segments)
        for table in (traffic, None):
            service = Service(table, other=self.traffic(UNIT))
            for turn in range(3):
                for user in ("ann", "bob", "carl"):
                    found = service.ask(user=text(user))
                    assert found.context.segments == ((user,) if table else ())
                    missing = service.ask()
                    assert missing.context.segments == (("",) if table else ())
                    named = request("2", user=text(user))
                    asked = service.infer.begin(UnaryExchange, named, 0, Call())
                    assert asked.plan.entry.version == 2
                    asked.cancel()
                if not turn:
                    forms = len(service.infer._plans)
            assert len(service.infer._plans) == forms, "each is seen first once"

    @pytest.mark.parametrize("size", [1, 60, 110, 117, 118, 127, 128, 256, 1000])
    @pytest.mark.parametrize("value_first", [False, True])
    def test_a_unit_of_any_length_and_order_sticks(
        self, size: int, value_first: bool
    ) -> None:
        service = Service(self.traffic(UNIT), other=self.traffic(COUNTRY))
        for turn in range(60):
            user = f"{turn % 3}" * size
            message = request(user=text(user), country=text(f"c{turn}"))
            if value_first:
                message = _value_first(message)
            found = service.infer.begin(UnaryExchange, message, 0, Call())
            assert found.context.unit == user[:256]
            wanted = service.ask(user=text(user)).choice
            assert found.choice == wanted
            assert found.choice is not None
            assert found.choice.policy == "sticky"
            found.cancel()

    def test_another_models_unit_hides_nothing_of_the_protocol(self) -> None:
        """A table from before such units were refused, say."""
        table = replace(self.traffic(UNIT), unit=Source("parameter", "timeout"))
        service = Service(ModelTraffic(arms=arms(1)), other=table)
        for timeout_us in (1, 2, 3, 1, 2, 3):
            found = service.ask(timeout=InferParameter(int64_param=timeout_us))
            assert found.plan.queue_timeout_ns == timeout_us * 1000

    def test_a_request_without_a_unit_is_drawn(self) -> None:
        service = Service(self.traffic(USER))
        exchanges = [service.ask() for _ in range(100)]
        assert {e.plan.entry.version for e in exchanges} == {1, 2}
        assert {e.context.bucket for e in exchanges} == {-1}


class TestSegments:
    traffic = ModelTraffic(
        arms=arms(1, 0),
        policy=Policy(PolicyKind.THOMPSON, contextual=True),
        segments=(Source("parameter", "country"), Source("metadata", "x-tier")),
    )

    def test_each_has_weights_of_its_own(self) -> None:
        service = Service(self.traffic)
        weights = Weights(2, (1.0, 0.0), {"se\x1fgold": (0.0, 1.0)})
        service.infer.routers.reweigh("m", weights)
        gold = Call(x_tier="gold")
        for _ in range(3):
            there = service.ask(gold, country=text("se"))
            assert there.plan.entry.version == 2
            assert there.context.segments == ("se", "gold")
            elsewhere = service.ask(gold, country=text("no"))
            assert elsewhere.plan.entry.version == 1
            assert service.ask(country=text("se")).plan.entry.version == 1
            assert service.ask().context.segments == ("", "")


@given(
    st.one_of(
        st.builds(lambda v: InferParameter(string_param=v), st.text()),
        st.builds(lambda v: InferParameter(bool_param=v), st.booleans()),
        st.builds(
            lambda v: InferParameter(int64_param=v), st.integers(-(2**63), 2**63 - 1)
        ),
        st.builds(lambda v: InferParameter(double_param=v), st.floats()),
        st.just(InferParameter()),
    )
)
def test_a_value_on_the_wire_is_the_one_protobuf_reads(value: InferParameter) -> None:
    pair = ModelInferRequest.ParametersEntry(key="user", value=value)
    entry = pair.SerializeToString()
    assert entry_text(entry, 0, len(entry)) == text_of(value)


def test_records_are_kept_up_to_a_bound() -> None:
    sink = MemorySink(3)
    choice, context = Service(ModelTraffic(arms=arms(1))).ask().choice, None
    for number in range(5):
        name = b"%d" % number
        model = "ab"[number % 2]
        sink.offer(Record(name, model, 0, 1, choice, context))  # type: ignore[arg-type]
    assert [record.name for record in sink.last("a", 9)] == [b"4", b"2"]
    assert [record.name for record in sink.last("a", 1)] == [b"4"]
    assert (sink.offered, sink.forgotten) == (5, 2)


def test_what_shadows_made_of_a_decision_comes_along() -> None:
    sink = MemorySink(100)
    choice, context = Service(ModelTraffic(arms=arms(1))).ask().choice, None
    assert choice is not None
    for number in range(4):
        name = b"%d" % number
        for role in (Role.CHAMPION, Role.SHADOW, Role.SHADOW):
            made = choice._replace(role=role)
            sink.offer(Record(name, "a", 0, 1, made, context))  # type: ignore[arg-type]
    found = [(record.name, str(record.choice.role)) for record in sink.last("a", 2)]
    assert [name for name, role in found if role == "champion"] == [b"3", b"2"]
    assert len(found) == 6


@pytest.mark.parametrize("where", [(), ("policy",), ("arms", 0), ("shadows", 0)])
def test_a_field_that_nobody_knows_is_refused(where: tuple[Any, ...]) -> None:
    traffic = ModelTraffic(arms=arms(1.0), shadows=(Shadow(2),))
    table: Any = MODEL_TRAFFIC.dump_python(traffic, mode="json")
    place = table
    for step in where:
        place = place[step]
    place["shares"] = 1
    with pytest.raises(ValidationError, match="shares"):
        MODEL_TRAFFIC.validate_python(table)


def test_answers_of_another_size_are_not_compared() -> None:
    """One that differs must not cost the others in the same turn theirs."""
    mirror, same = Mirror("m", 2), np.array([[0.9]], "<f4").tobytes()
    way = Way(mirror, None, (0,), ((0, 0),), ("FP32",))  # type: ignore[arg-type]
    mirror.answers += [(way, [same], [same], 1), (way, [same], [same * 2], 1)]
    mirror.compare()
    assert (mirror.agreement.rows, mirror.agreement.agreed) == (1, 1)
