import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "static"


def test_vendored_files_are_what_their_readme_says() -> None:
    rows = re.findall(
        r"\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|", (STATIC / "vendor/README.md").read_text()
    )
    assert rows
    for name, sha256 in rows:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == sha256
    assert {name for name, _ in rows} == {p.name for p in (STATIC / "vendor").glob("*.js")}


def test_nothing_in_the_templates_needs_a_looser_policy() -> None:
    for path in (ROOT / "templates").iterdir():
        text = path.read_text()
        assert not re.search(r"\sstyle=|\son[a-z]+=|<script>|hx-on|hx-vals|javascript:", text), path
        if path.name != "timeline.svg":
            assert "<style" not in text, path


def test_every_stage_has_a_colour_and_the_drawing_part_is_marked() -> None:
    from app.render import END_OF_DRAWING_CSS
    from emulator.handoff import STAGES

    drawing, rest = (STATIC / "bootflow.css").read_text().split(END_OF_DRAWING_CSS)
    for stage in STAGES:
        assert f".s{stage.letter}{{" in drawing
        assert drawing.count(f"--{stage.letter}:") == 2  # light and dark
    assert "url(" not in rest
