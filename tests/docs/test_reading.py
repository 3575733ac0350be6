"""What is read out of a page, and when a page is refused."""

import pytest

from tests.docs.tutorial import End, SaveFile, Type, steps_of, unseen

PAGE = """# A page

```sh
farflung demo
```

```text
one ... three
```

```toml title="run.toml"
[run]
```

```sh title="Terminal 1"
farflung api
```

<!-- interrupt Terminal 1 -->
"""


def test_a_page_becomes_steps_in_order() -> None:
    assert steps_of(PAGE) == [
        Type("farflung demo\n", seen=("one ... three",)),
        SaveFile("run.toml", "[run]\n"),
        Type("farflung api\n", "Terminal 1"),
        End("interrupt", "Terminal 1"),
    ]


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("```text\nseen\n```\n", "follow no commands"),
        ("```toml\n[run]\n```\n", "has no title"),
        ("<!-- polish Terminal 1 -->\n", "cannot polish"),
    ],
)
def test_what_a_reader_could_not_follow_is_refused(page: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        steps_of(page)


def test_lines_must_be_seen_in_order_and_dots_stand_for_anything() -> None:
    output = "first 12 s\n\n  second   line\nthird"
    assert unseen(("first ... s", "second line"), output) == ""
    assert unseen(("...", "third"), output) == ""
    assert unseen(("second line", "first ..."), output) == "first ..."
    assert unseen(("second",), output) == "second"
