"""Pieces of the template language in the extension against transformers' Jinja."""

import random

import pytest
from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from grmlight._data_rs import BrokenPlanError, ChatRenderer, UnsupportedTemplateError
from tests.data import chat

TOKENS = {"bos_token": "<s>", "extra": ["<a>", "<b>"]}
# c is a content; whole templates are wrapped around these.
EXPRESSIONS = [
    *["c", "c.strip()", "c.lstrip()", "c.rstrip()", "c | trim", "c.strip('\\n')", "c.lstrip(' \\n')", "c.rstrip('s')"],
    *["c.split()", "c.split('\\n')", "c.split(' ', 1)", "c.split('o')[-1]", "c.split('o')[5]", "c.split('zz')[0]"],
    *["c.startswith('\\n')", "c.endswith(' ')", "c.replace('o', '0')", "c.replace('o', '0', 1)", "c.find('o')"],
    *[
        "c.rfind('o')",
        "c.count('o')",
        "c.upper()",
        "c | lower",
        "c | capitalize",
        "c.capitalize()",
        "c | replace('o', c)",
    ],
    *["c[0]", "c[-1]", "c[1:]", "c[:-1]", "c[::-1]", "c[2:5]", "c[1:-1]", "c | length", "c | first", "c | last"],
    *["c | list | length", "c | list | join('-')", "'-'.join(c.split())", "c ~ 1 ~ none ~ true ~ nothing ~ c", "c * 2"],
    *["'o' in c", "'o' not in c", "c in ['', 'words']", "c == ''", "c != 'words'", "not c", "c and 'x'", "c or 'x'"],
    *[
        "c | tojson",
        "messages | tojson",
        "messages[0] | tojson(indent=2)",
        "{'b': [1, {}, []], 'a': c} | tojson(indent=4)",
    ],
    *["{'b': 1, 'a': none} | tojson(sort_keys=true)", "{'b': true, 'a': c}.items() | list | length", "[] | tojson"],
    *["c is string", "c is mapping", "c is iterable", "c is sequence", "messages[0] is mapping", "none is iterable"],
    *["nothing is defined", "nothing is iterable", "nothing | default(c)", "'' | default(c, true)", "nothing | length"],
    *[
        "messages[0].get('content')",
        "messages[0].get('x')",
        "messages[0].get('x', c)",
        "messages[0].nothing is undefined",
    ],
    *["messages[0].keys() | join(',')", "messages[0].values() | list | last", "'content' in messages[0]", "tools"],
    *[
        "messages[1:] | length",
        "messages[1:] is iterable",
        "'a' if messages[5:] else 'b'",
        "messages[5:] | first is defined",
    ],
    *["messages | selectattr('role', 'equalto', 'user') | list | length", "messages[::-1] | map('length') | join"],
    *[
        "(messages | rejectattr('role', 'eq', 'user') | list)[0] is defined",
        "messages | map(attribute='role') | join(',')",
    ],
    *[
        "1 + 2 * 3 // 2 - 7 % 3",
        "-7 // 2",
        "-7 % 3",
        "2 ** 3",
        "7 / 2",
        "1 < 2 < 3",
        "3 > 2 > 2",
        "1 == 1.0",
        "1 == true",
    ],
    *[
        "documents is none",
        "add_generation_prompt",
        "bos_token + c",
        "eos_token is defined",
        "extra | join(c)",
        "extra[1]",
    ],
    *["[1, 2] == [1, 2]", "range(3) | list | length", "range(1, 9, 3) | join(',')", "dict(a=c).a", "c is not none"],
    *["'\\x41\\u00e9\\101\\'\\\\'", "'a' 'b'", "1.5", "[1]", "c | int", "c | safe", "c | e", "c is lower", "c.title()"],
    *[
        "none ~ false ~ c",
        "(c, 1)[0]",
        "loop is defined",
        "namespace(a=c).a",
        "'%s' % c",
        "'{}'.format(c)",
        "c | string | trim('s')",
    ],
]
BLOCKS = [
    (
        "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}"
        "{{ loop.length }}{% endfor %}"
    ),
    (
        "{% for m in messages %}{{ (loop.previtem or m).role }}{{ loop.nextitem is defined }}"
        "{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{% endfor %}"
    ),
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    (
        "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    ),
    "{% set x = 1 %}{% for m in messages %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    (
        "{% set n = namespace(x=1, y=[]) %}{% for m in messages %}{% set n.x = n.x + 1 %}"
        "{% set n.y = n.y + [m.role] %}{% endfor %}{{ n.x }}{{ n.y | join }}"
    ),
    ("{% if false %}{% set y = 1 %}{% endif %}{{ y is defined }}{% if true %}{% set y = 1 %}{% endif %}{{ y }}"),
    "{% macro f(a, b='x') -%}\n  {{ a }}-{{ b }}\n{%- endmacro %}{{ f(1) }}{{ f(2, b=3) }}{{ f() }}",
    "{% set t %}  {{ c }} {% endset %}[{{ t }}][{{ t | trim }}]",
    (
        "{% for m in messages %}{% generation %}{% set z = 1 %}{{ m.content }}{% endgeneration %}"
        "{{ z is defined }}{% endfor %}"
    ),
    (
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
        "{% for k, v in messages[0] | items %}{{ k }}{% endfor %}"
    ),
    ("  {% if true %}  \n  a\n  {%- endif %}  \n\n  {#- c -#}  \n b {# c #} \n  {%+ if true %} x\n{% endif +%}\n\n"),
    "{{ c }}\n{% if true %}\n  {{ c }}  \n\t{% endif %}\n{{ c -}}  \n  x {{- c }}\n\n",
    "{% raw %}{{ c }}{% endraw %}{{ '{{' }}{{ '%}' }}\r\nx\ry",
    (
        "{% if c is string and not c.startswith('w') or c is none %}"
        "1{% elif 'o' in c and c | length > 3 %}2{% else %}3{% endif %}"
    ),
    "{% set a, b = c, 2 %}{{ a }}{{ b }}{% with q = c %}{{ q }}{% endwith %}{{ q is defined }}",
    "{% if c == 'words' %}{{ raise_exception('bad ' + c) }}{% endif %}{{ raise_exception(1) if 'é' in c }}",
    ("{% set messages = messages[1:] %}{{ messages | length }}{% if messages %}{{ messages[0].content }}{% endif %}"),
    (
        "{% for m in messages[::-1] %}{{ m.role }}{{ messages[loop.index0 - 1].role }}{% endfor %}"
        "{{ messages[:-1] | length }}"
    ),
    (
        "{% for m in messages recursive %}{{ m.role }}{% endfor %}"
        "{% for x in range(messages | length) %}{{ x }}{% endfor %}"
    ),
]
CONTENTS = [*chat.PIECES, "Words Of\nMore  than\to one o\n"]


def by_transformers(template, messages):
    """The text in a list, or the refusal; nothing where the template fails in Python."""
    try:
        return render_jinja_template([messages], chat_template=template, **TOKENS)[0]
    except TemplateError as error:
        return str(error)
    except (TypeError, ValueError, AttributeError):
        return None


def agree(template):
    """How many contents are rendered; those are as by transformers. A template that fails in Python is left out."""
    template = "{% set c = messages[0].content %}" + template
    try:
        renderer = ChatRenderer(template, TOKENS, {})
    except UnsupportedTemplateError:
        return 0
    rendered = 0
    for content in CONTENTS:
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "so"}]
        try:
            found = renderer.render(messages[:1], [messages[1:]], row=7)
        except UnsupportedTemplateError:
            continue
        expected = by_transformers(template, messages)
        if expected is not None:
            assert (found if isinstance(found, str) else found[0]) == expected, (template, content)
            rendered += 1
    return rendered


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_give_what_jinja_gives(expression):
    agree("[{{ " + expression + " }}]")
    agree("{% if " + expression + " %}yes{% else %}no{% endif %}")


@pytest.mark.parametrize("template", BLOCKS)
def test_blocks_give_what_jinja_gives(template):
    assert agree(template) > 0


def test_most_of_the_language_is_rendered():
    left = [expression for expression in EXPRESSIONS if not agree("[{{ " + expression + " }}]")]
    assert len(left) < len(EXPRESSIONS) / 5, left


def test_random_expressions_give_what_jinja_gives():
    chance = random.Random(3)
    parts = [part for part in EXPRESSIONS if "'%s'" not in part]
    for _ in range(150):
        left, right = chance.choices(parts, k=2)
        operator = chance.choice([" ~ ", " + ", " == ", " and ", " or ", " in ", " if c else "])
        agree("{{ (" + left + ")" + operator + "(" + right + ") }}")


def test_a_template_that_cannot_be_compiled_is_left_to_transformers():
    for template in ["{% if %}", "{% include 'x' %}", "{{ a b }}", "{% do c.strip() %}", "a\u00a0b", "{{ m[3:0:-1] }}"]:
        with pytest.raises(UnsupportedTemplateError):
            ChatRenderer(template, TOKENS, {})


def test_a_plan_is_proven_on_rows():
    template = "{% for m in messages %}{{ m.content }}{% if m.content | length > 9000 %}!{% endif %}{% endfor %}"
    renderer = ChatRenderer(template, TOKENS, {})
    assert renderer.render("why", ["so"], row=3) == (["whyso"], [3])
    with pytest.raises(BrokenPlanError, match="user, assistant"):
        renderer.render("why", ["so " * 5000], row=3)
    whole = ChatRenderer(template, TOKENS, {"plan": False})
    assert whole.render("why", ["so " * 5000], row=3)[0][0].endswith("!")
