"""The hook manager alone, on plain modules: atomic attaching, order, switching off, inert copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from hf_mote.hooks import Attachment, Intervention, Participant, SharedHook, attach, stack_on


class Adds(Participant):
    """Adds a number and writes down that it was here."""

    def __init__(self, number: float, log: list[float]) -> None:
        self.number = number
        self.log = log


class Sum(SharedHook):
    """Applies its participants in order."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for participant in self.participants:
            participant.log.append(-participant.number)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        for participant in self.participants:
            if participant.active:
                participant.log.append(participant.number)
                output = output * 10 + participant.number
        return output


class AfterOnly(SharedHook):
    """Replaces the output."""

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return output + 1


class HearsOfFailures(Sum):
    """Writes down that the module failed."""

    def failed(self) -> None:
        for participant in self.participants:
            participant.log.append(float("nan"))


class Unhookable(nn.Identity):
    """Refuses the hook of one kind."""

    def __init__(self, refuses: str) -> None:
        super().__init__()
        self.refuses = refuses

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        if self.refuses == "forward":
            raise RuntimeError("no hook here")
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        if self.refuses == "pre":
            raise RuntimeError("no hook here")
        return super().register_forward_pre_hook(*args, **kwargs)


ONE = torch.ones(1)


def num_hooks(*modules: nn.Module) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(part, name)) for module in modules for part in module.modules() for name in names)


@pytest.mark.parametrize("refuses", ["forward", "pre"])
def test_attach_failure_leaves_zero_hooks(refuses: str) -> None:
    good, bad, late = nn.Identity(), Unhookable(refuses), nn.Identity()
    log: list[float] = []
    with pytest.raises(RuntimeError, match="no hook here"):
        attach([Attachment(module, Sum(), Adds(1, log)) for module in (good, bad, late)])
    assert num_hooks(good, bad, late) == 0
    assert [module(ONE).item() for module in (good, bad, late)] == [1, 1, 1]
    assert log == []


def test_attach_failure_leaves_what_was_attached_before() -> None:
    good, bad = nn.Identity(), Unhookable("forward")
    log: list[float] = []
    with attach([Attachment(good, Sum(), Adds(2, log))]):
        stack = stack_on(good, Sum)
        assert stack is not None
        hooks = num_hooks(good)
        with pytest.raises(RuntimeError, match="no hook here"):
            attach([Attachment(good, stack, Adds(3, log)), Attachment(bad, Sum(), Adds(3, log))])
        assert num_hooks(good, bad) == hooks
        assert good(ONE).item() == 12
    assert num_hooks(good, bad) == 0


def test_attach_failure_can_be_tried_again_with_the_same_stack() -> None:
    module, stack, log = Unhookable("forward"), Sum(), []
    with pytest.raises(RuntimeError, match="no hook here"):
        attach([Attachment(module, stack, Adds(2, log))])
    module.refuses = ""
    with attach([Attachment(module, stack, Adds(2, log))]):
        assert module(ONE).item() == 12
    assert num_hooks(module) == 0
    assert log == [-2, 2]


def test_stack_participants_act_in_the_order_of_attaching() -> None:
    module, log = nn.Identity(), []
    stack = Sum()
    handles = [attach([Attachment(module, stack, Adds(number, log))]) for number in (2, 3, 4)]
    assert len(module._forward_hooks) == len(module._forward_pre_hooks) == 1
    assert module(ONE).item() == 1234
    handles[1].remove()
    assert module(ONE).item() == 124
    handles[0].remove()
    handles[2].remove()
    assert num_hooks(module) == 0
    assert module(ONE).item() == 1


def test_stack_same_participant_twice_in_one_intervention_leaves_completely() -> None:
    one, two, log = nn.Identity(), nn.Identity(), []
    participant = Adds(2, log)
    handle = attach([Attachment(one, Sum(), participant), Attachment(two, Sum(), participant)])
    assert (one(ONE) + two(ONE)).item() == 24
    handle.remove()
    assert num_hooks(one, two) == 0


def test_stack_is_prepended_so_other_hooks_see_what_it_made() -> None:
    module, seen = nn.Identity(), []
    module.register_forward_hook(lambda module, args, output: seen.append(output.item()))
    with attach([Attachment(module, AfterOnly(), Participant())]):
        module(ONE)
    assert seen == [2]
    assert len(module._forward_hooks) == 1  # the other's


def test_stack_without_before_registers_no_pre_hook() -> None:
    module = nn.Identity()
    with attach([Attachment(module, AfterOnly(), Participant())]):
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("kind", [Sum, HearsOfFailures])
def test_stack_hears_of_a_failed_forward_if_it_asks_to(kind: type[Sum]) -> None:
    module, log = nn.Linear(2, 2), []
    with attach([Attachment(module, kind(), Adds(3, log))]) as handle:
        module(torch.ones(2))
        with pytest.raises(RuntimeError, match="shape"):
            module(torch.ones(5))
        assert str(log) == ("[-3, 3, -3, nan]" if kind is HearsOfFailures else "[-3, 3, -3]")
        handle.remove()
    assert not module._forward_hooks_always_called


def test_stack_on_finds_only_a_live_stack_of_the_kind() -> None:
    module, stack = nn.Identity(), AfterOnly()
    assert stack_on(module, AfterOnly) is None
    with attach([Attachment(module, stack, Participant())]):
        assert stack_on(module, AfterOnly) is stack
        assert stack_on(module, Sum) is None
        assert stack_on(copy.deepcopy(module), AfterOnly) is None
    assert stack_on(module, AfterOnly) is None


def test_intervention_active_reaches_every_participant() -> None:
    modules, log = [nn.Identity(), nn.Identity()], []
    handle = attach([Attachment(module, Sum(), Adds(5, log)) for module in modules])
    assert handle.active
    handle.active = False
    assert [module(ONE).item() for module in modules] == [1, 1]
    handle.active = True
    assert [module(ONE).item() for module in modules] == [15, 15]
    handle.remove()
    assert not handle.active


def test_intervention_removed_cannot_be_made_active_again() -> None:
    module = nn.Identity()
    handle = attach([Attachment(module, AfterOnly(), Participant())])
    handle.remove()
    handle.active = True
    assert not handle.active
    assert module(ONE).item() == 1


def test_intervention_exception_in_the_block_removes_and_is_raised() -> None:
    module = nn.Identity()
    with pytest.raises(ZeroDivisionError), attach([Attachment(module, AfterOnly(), Participant())]) as handle:
        raise ZeroDivisionError
    assert handle.removed
    assert num_hooks(module) == 0


def test_intervention_without_hooks_is_usable() -> None:
    with attach([]) as handle:
        assert handle.active
    assert handle.removed
    assert "removed" in repr(handle)
    assert isinstance(handle, Intervention)


def test_intervention_removed_by_a_hook_in_the_middle_of_a_forward_is_fine() -> None:
    module, log = nn.Identity(), []
    handle = attach([Attachment(module, Sum(), Adds(5, log))])
    module.register_forward_pre_hook(lambda *_: handle.remove())
    module(ONE)
    assert module(ONE).item() == 1
    assert num_hooks(module) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_carry_an_inert_stack(duplicate: Any) -> None:
    module = nn.Sequential(nn.Identity())
    log: list[float] = []
    handle = attach([Attachment(module[0], Sum(), Adds(5, log))])
    twin = duplicate(module)
    assert twin(ONE).item() == 1
    assert log == []
    assert module(ONE).item() == 15
    with attach([Attachment(twin[0], Sum(), Adds(6, log))]):
        assert twin(ONE).item() == 16
        assert module(ONE).item() == 15
    assert twin(ONE).item() == 1
    handle.remove()
    assert num_hooks(module) == 0
    assert list(module.state_dict()) == []
