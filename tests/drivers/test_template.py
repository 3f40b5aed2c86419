"""Chat templates: the usual ones render, the hostile ones end."""

import pytest

from llmasos.drivers.local.template import Template
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Message, Role

TALK = [Message(Role.SYSTEM, "Be kind."), Message(Role.USER, "Hi {{ 7 * 7 }}")]
MARKS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source: str) -> str:
    return Template(source, MARKS).render(TALK)


def test_a_model_without_a_template_gets_the_plain_one() -> None:
    assert render("") == "system: Be kind.\nuser: Hi {{ 7 * 7 }}\nassistant: "


def test_what_templates_commonly_use_works() -> None:
    source = """{{ bos_token }}{% for m in messages %}
    {%- if loop.first and tools is none %}[{{ m['role'] | upper }}]{% continue %}{% endif -%}
    {{ m.content | trim }}{{ eos_token * 2 }}{% endfor %}
    {%- if add_generation_prompt %}:{{ strftime_now('%Y')[:2] }}{% endif %}"""
    assert render(source) == "<s>[SYSTEM]Hi {{ 7 * 7 }}</s></s>:20"


def test_a_template_refuses_messages_with_its_own_words() -> None:
    with pytest.raises(SyscallError, match="roles must alternate") as error:
        render("{{ raise_exception('roles must alternate') }}")
    assert error.value.errno == Errno.EINVAL


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ 1 / 0 }}",
        "{{ messages[9].role.x }}",
        "{{ nothing() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 10 ** 99999999 }}",
        "{{ range(1000000000) }}",
        "{% for _ in range(99999) %}" + "x" * 100 + "{% endfor %}",
        "{% include 'other' %}",
        "{{ 1 | tojson(indent='x') | float | round('x') }}",
    ],
)
def test_a_bad_template_is_refused(source: str) -> None:
    with pytest.raises(SyscallError) as error:
        render(source)
    assert error.value.errno == Errno.EINVAL
    assert "template" in error.value.message


def test_a_template_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_S", 0.2)
    row = "{% for _ in range(99999) %}"
    with pytest.raises(SyscallError) as error:
        render(row * 3 + "{% endfor %}" * 3)
    assert error.value.errno == Errno.ETIMEDOUT
    assert render("after") == "after"
