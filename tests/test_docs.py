"""What README and the manual say is so: commands exist, Python runs, recipes and keys are the schema's, files and links
are there; and the built manual asks nothing of the network."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import subprocess
import sys
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.documents import DOCS, FRONT, PAGES, blocks, commands, spans, troubleshooting

LARGEST = 10_000  # bytes of a front page
DELETED = ("old_logprobs", "kl_straight_through", "missing_eos", "clip_value_in_warmup")  # options that were removed
SECTIONS = ("base", "sft", "pmp", "rm", "rejection", "dpo", "ppo")
SECTIONS += ("model", "rollout", "evaluation", "guards", "tinyworld")


def name_of(page: Path) -> str:
    return page.name


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.mark.parametrize("page", FRONT, ids=name_of)
def test_a_front_page_is_short(page):
    assert len(page.read_bytes()) <= LARGEST


def test_the_pages_have_what_is_looked_for_here():
    assert {command[0] for page in PAGES for command in commands(page)} >= {"make", "align", "accelerate", "python"}
    assert sum(language == "python" for page in PAGES for language, _ in blocks(page)) > 3
    assert sum(language == "yaml" for page in PAGES for language, _ in blocks(page)) > 3


@cache
def parser() -> ArgumentParser:
    from align.cli import _parser

    return _parser()


@cache
def make_knows(*words: str) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True, timeout=60)


@each_page
def test_every_command_is_one(page):
    """`align …` by the parser itself; programs and modules by their files; make targets by make."""
    from align.runs.arguments import parse_with_overrides

    for words in commands(page):
        while words[0].partition("=")[0].isupper():  # a variable before the command
            words = words[1:]
        program, rest = words[0], [word for word in words[1:] if word != "…"]
        if program == "align" and rest[0] not in ("COMMAND", "--help"):
            parse_with_overrides(parser(), rest)
        elif program == "make":
            make_knows(*rest)
        elif program in ("python", "accelerate", "torchrun"):
            file = next((word for word in rest if word.endswith(".py")), None)
            module = rest[rest.index("-m") + 1] if "-m" in rest else None
            assert (file is not None and (ROOT / file).is_file()) or (module and importlib.util.find_spec(module)), (
                words
            )


@each_page
def test_make_targets_in_a_sentence_exist(page):
    for span in spans(page):
        if span.startswith("make "):
            make_knows(span.split()[1])


@each_page
def test_python_runs(page, tmp_path, monkeypatch):
    """Every block by itself, in an empty folder; nothing in them trains."""
    monkeypatch.chdir(tmp_path)
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"a block of {page.name}", "exec"), {})


@each_page
def test_recipes_are_recipes(page, tmp_path):
    """A block of YAML with a name is a whole recipe; any other is a piece that the quickstart's takes."""
    from align.recipe import Recipe, load_recipe
    from align.recipe.text import parse

    whole, _ = parse((ROOT / "recipes/quickstart.yaml").read_text(), "quickstart")
    for at, (language, text) in enumerate(blocks(page)):
        if language != "yaml":
            continue
        found, _ = parse(text, page.name)
        if "name" in found:
            file = tmp_path / f"{at}.yaml"
            file.write_text(text)
            load_recipe(file)
        else:
            Recipe.model_validate({**whole, **{key: whole.get(key, {}) | part for key, part in found.items()}})


@each_page
def test_every_file_and_folder_that_is_named_exists(page):
    places = r"(align|data_formats|docs|examples|recipes|tests)/[\w./]*|(reward|rollouts)/[\w/]*(\.py|/)"
    named = {span for span in spans(page) if re.fullmatch(places, span)}
    assert not [name for name in sorted(named) if "NAME" not in name and not (ROOT / name).exists()]


@each_page
def test_every_key_that_is_named_is_one_of_the_schema(page):
    from align.recipe import Recipe

    known = keys_below(Recipe)
    for span in spans(page):
        key = span.partition("=")[0].partition(":")[0]
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) and key.split(".")[0] in SECTIONS and not key.endswith(".py"):
            assert any(one == key or one.endswith(f".{key}") for one in known), f"{page.name}: {span}"


@cache
def keys_below(section: type, inside: str = "") -> set[str]:
    """Dotted keys of a section of the schema and of all sections in it."""
    found = set()
    for name, field in section.model_fields.items():
        key = f"{inside}.{name}" if inside else name
        found.add(key)
        for kind in sections_in(field.annotation):
            found |= keys_below(kind, key)
    return found


def sections_in(annotation: object) -> list[type]:
    from align.recipe.section import Section

    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [kind for part in getattr(annotation, "__args__", ()) for kind in sections_in(part)]


@each_page
def test_no_option_is_named_that_is_gone(page):
    words = set(re.findall(r"\w+", page.read_text(encoding="utf-8")))
    assert not words & set(DELETED)


def test_the_table_of_ppo_explains_every_key_that_decides_what_is_learnt():
    from align import PPOConfig

    table = (DOCS / "stages.md").read_text(encoding="utf-8").partition("### Every key of `ppo`")[2]
    explained = set(re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M))))
    sizes = {
        "num_iterations",
        "rollout_batch_size",
        "num_ppo_epochs",
        "num_mini_batches",
        "micro_batch_size",
        "micro_batch_tokens",
    }
    records = {
        "logging_steps",
        "save_steps",
        "save_total_limit",
        "log_samples",
        "ptx_max_length",
        "ptx_micro_batch_size",
    }
    parts = {"rollout", "policy", "critic", "evaluation"}
    assert set(PPOConfig.model_fields) - sizes - records - parts <= {
        *explained,
        *(name.split(".")[0] for name in explained),
    }


@pytest.mark.parametrize("page", FRONT, ids=name_of)
def test_links_of_a_front_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in filter(lambda link: "://" not in link, map("".join, links)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and Python-Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def test_the_chinese_readme_says_the_same():
    """The same commands, the same recipe, the same figures, the same links: only the words differ."""
    english, chinese = (ROOT / name for name in ("README.md", "README.zh.md"))
    assert commands(english) == commands(chinese)
    texts = [page.read_text(encoding="utf-8") for page in (english, chinese)]
    yaml_of, figures, links = (
        [[text for language, text in blocks(page) if language == "yaml"] for page in (english, chinese)],
        [re.findall(r"^\|[^|]*\|(.*\d.*)\|$", text, re.M) for text in texts],
        [sorted(set(re.findall(r"\]\((docs/[^)]+|C[A-Z]+\.md)\)", text))) for text in texts],
    )
    for one, other in (yaml_of, [rows[1:] for rows in figures], links):  # the head names the seeds
        assert one == other and one


def test_the_page_of_figures_names_those_that_ppo_logs():
    """As the docstring of the module that makes them does."""
    text = ast.get_docstring(ast.parse((ROOT / "align/trainers/ppo/metrics.py").read_text(encoding="utf-8")))
    told = set(re.findall(r"\b[a-z_]+/[A-Za-z_0-9]+\b|\b(?:distinct\w*|end_rate|kl_coef|steps_\w+)\b", text))
    page = {name.replace("/std", "/std") for name in spans(DOCS / "metrics.md")}
    missing = {name for name in told if name not in page and not name.endswith("/PART")}
    assert len(told) > 40 and missing <= {"cut_by/none"}, missing


def test_the_doctors_table_is_current():
    found = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert found == troubleshooting(), "python -m tests.documents"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The manual as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.needs("material")
def test_a_built_page_asks_nothing_of_the_network(site):
    """Scripts, styles, fonts, images and frames are files of the manual; links that a reader follows may lead away."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|link|iframe|source|video|audio|object|embed|input)\b[^>]*>", text)
        for tag in tags:
            for address in re.findall(r"\b(?:src|href|srcset|data|poster)=[\"']?([^\"' >]+)", tag):
                assert not re.match(r"(https?:)?//", html.unescape(address)), f"{page.name}: {tag}"
        assert 'class="mermaid"' not in text  # its script would be fetched
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.needs("material")
def test_the_manual_can_be_searched_without_a_network(site):
    index = (site / "search/search_index.json").read_text(encoding="utf-8")
    assert "critic_warmup_steps" in index and "on_reward_error" in index
    assert list((site / "assets/javascripts/workers").glob("search*.js"))


def test_the_source_distribution_has_the_manual():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert included >= {"/docs", "/mkdocs.yml", "/README.zh.md", "/CONTRIBUTING.md", "/CHANGELOG.md"}
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    assert {"mkdocs", "mkdocs-material"} <= pins
