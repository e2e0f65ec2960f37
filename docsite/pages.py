"""Pages of the site that are made from the code: commands, settings, names, experiments, changelog.

A hook of MkDocs (see ``mkdocs.yml``), so that these pages cannot say anything but what the code says.
"""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer
from mkdocs.structure.files import File, Files

from slimbit.cli import app
from slimbit.cli.lists import SHORTCUTS, hardware_rows, network_rows, recipe_rows
from slimbit.records import config as settings
from slimbit.records import learning, training

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/slimbit/slimbit/blob/main/"
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")
WRITTEN_DEFAULT = re.compile(r"[Dd]efault:? ((?:[^.;()]|\.(?=\w))+)|(\w+) \(default\)")
"""Where the help of an option names the default: "default 0.1", "Default: no limit", "layer (default)"."""
CONFIGS = (
    settings.RunConfig, settings.QuantConfig, settings.PruneConfig, settings.TuneConfig, learning.LearnConfig,
    settings.FrontierConfig,
    training.TrainConfig, training.OptimizerConfig, training.ScheduleConfig, training.AugmentConfig,
)  # fmt: skip

SETTINGS = """The same settings for Python (`slimbit.RunConfig(...)`), for TOML files (`--config`, `--tune-config`) and,
under the names of their options, for the command line. In TOML a class inside another is a table: `[quant]`,
`[prune.tune]`. Unknown keys are refused.
"""


def on_config(config: Any) -> Any:
    """Put the experiments into the navigation."""
    for entry in config["nav"]:
        if "Experiments" in entry:
            entry["Experiments"] = [f"experiments/{page.parent.name}.md" for page in _experiments()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "reference/command-line.md": command_line(),
        "reference/configuration.md": configuration(),
        "reference/lists.md": lists(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
    }
    for page in _experiments():
        made[f"experiments/{page.parent.name}.md"] = page.read_text(encoding="utf-8")
        for picture in sorted(page.parent.glob("*.png")):
            uri = f"experiments/{page.parent.name}/{picture.name}"
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    made |= {
        f"assets/{name}": (ROOT / "docsite" / name).read_text(encoding="utf-8") for name in ("site.css", "site.js")
    }
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Name the theme's search dialog for screen readers."""
    del page, config
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def on_post_template(output_content: str, *, template_name: str, config: Any) -> str:
    """The same on the page of a missing address."""
    del template_name
    return on_post_page(output_content, page=None, config=config)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository lead to their page, or to the file where it has none."""
    del config
    origin = _origin(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = (origin.parent / link[2]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]
        uri = _page_of(target)
        if uri is None or files.get_file_from_path(uri) is None:
            return f"{link[1]}{SOURCE}{target.relative_to(ROOT)}{link[3] or ''}{link[4]}"
        up = "../" * page.file.src_uri.count("/")
        return f"{link[1]}{up}{uri}{link[3] or ''}{link[4]}"

    return LINK.sub(moved, markdown)


def command_line() -> str:
    """Every command with its options, from the parser."""
    group = typer.main.get_command(app)
    parts = ["# Command line\n", "`slimbit COMMAND --help` shows the same in the terminal.\n"]
    for name, command in group.commands.items():  # type: ignore[attr-defined] # a group, which typer leaves untyped
        shown = [param for param in command.params if not getattr(param, "hidden", False) and param.name != "help"]
        arguments = "".join(f" {_metavar(param)}" for param in shown if param.param_type_name == "argument")
        parts += [f"## slimbit {name}\n", f"```\nslimbit {name}{arguments} [OPTIONS]\n```\n", f"{command.help}\n"]
        parts += ["| option | value | default | meaning |", "|---|---|---|---|"]
        for param in shown:
            names = " ".join(f"`{option}`" for option in (*param.opts, *param.secondary_opts))
            if param.param_type_name == "argument":
                names = f"`{_metavar(param)}`"
            parts.append(f"| {names} | {_value(param)} | {_default_of(param)} | {_cell(param.help or '')} |")
        parts.append("")
    return "\n".join(parts)


def configuration() -> str:
    """Every settings class with its keys, types, defaults and meanings."""
    parts = [
        "# Configuration\n",
        SETTINGS,
    ]
    for kind in CONFIGS:
        text, meanings = _attributes(kind.__doc__ or "")
        parts += [f"## {kind.__name__}\n", f"{text}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        meanings |= {} if kind is not settings.FrontierConfig else {"": "and every key of RunConfig"}
        for name, info in kind.model_fields.items():
            if kind is settings.FrontierConfig and name in settings.RunConfig.model_fields:
                continue
            default = _default(info.get_default(call_default_factory=True))
            parts.append(f"| `{name}` | {_type(info.annotation)} | {default} | {_cell(meanings.get(name, ''))} |")
        if "" in meanings:
            parts.append(f"| | | | {meanings['']} |")
        parts.append("")
    return "\n".join(parts)


def lists() -> str:
    """Networks, hardware models and recipes by name."""
    parts = ["# Networks, hardware, recipes\n", "## Networks\n", f"{_cell(SHORTCUTS)}\n"]
    parts += _table(("network", "input", "outputs"), network_rows())
    parts += ["## Hardware\n", "Your own: [Describe your own hardware](../how-to/own-hardware-model.md).\n"]
    parts += _table(("hardware", "unit", "what it is"), hardware_rows())
    parts += ["## Recipes\n", "For `slimbit train --recipe NAME`.\n"]
    parts += _table(("recipe", "network", "epochs", "what it is for"), recipe_rows())
    return "\n".join(parts)


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _value(param: Any) -> str:
    """What an option takes: its choices, or its type under the name that the help gives it."""
    if getattr(param, "is_flag", False):
        return "none"
    annotation = param.type_descriptor.annotation
    if get_origin(annotation) is list:  # a repeatable option takes one of them at a time
        annotation = get_args(annotation)[0]
    kinds = [kind for kind in _types(annotation) if kind != "nothing"]
    kind = " or ".join(dict.fromkeys(kinds))
    named = f"`{_cell(param.metavar)}`, {kind}" if param.metavar and param.param_type_name != "argument" else kind
    return f"{named}, repeatable" if param.multiple else named


def _default_of(param: Any) -> str:
    """The default of an option, as its declaration or the text of its help has it."""
    if param.required:
        return "required"
    if isinstance(param.show_default, str):
        return param.show_default
    if param.default is True:
        return "on"
    if param.default not in (None, False, (), ""):
        return f"`{param.default}`"
    said = WRITTEN_DEFAULT.search(param.help or "")
    if said:
        return _cell(next(filter(None, said.groups())))
    return "off" if getattr(param, "is_flag", False) else ""


def _experiments() -> list[Path]:
    return sorted((ROOT / "experiments").glob("*/README.md"))


def _origin(uri: str) -> Path:
    """The file in the repository that a page was made from."""
    if uri == "changelog.md":
        return ROOT / "CHANGELOG.md"
    if uri.startswith("experiments/"):
        return ROOT / "experiments" / Path(uri).stem / "README.md"
    return ROOT / "docs" / uri


def _page_of(target: Path) -> str | None:
    """The page that a file of the repository is on."""
    if target.is_dir():
        target = target / "README.md"
    path = target.relative_to(ROOT)
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.parts[0] == "experiments" and path.name == "README.md":
        return f"experiments/{path.parent.name}.md"
    if path.parts[0] == "experiments" and path.suffix == ".png":
        return path.as_posix()
    return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}.get(path.as_posix())


def _attributes(docstring: str) -> tuple[str, dict[str, str]]:
    """What stands before "Attributes:", and the text of each attribute."""
    text, _, rest = docstring.partition("Attributes:")
    rest = rest.split("\n\n")[0]
    found: dict[str, str] = {}
    for line in rest.splitlines():
        entry = re.match(r"^ {8}(\w+): (.*)", line)
        if entry:
            found[entry[1]] = entry[2]
        elif found and line.strip():
            found[next(reversed(found))] += f" {line.strip()}"
    return "\n".join(line.strip() for line in text.splitlines()).strip(), found


def _type(annotation: Any) -> str:
    """A type as a reader of a TOML file would say it."""
    return " or ".join(dict.fromkeys(_types(annotation)))


def _types(annotation: Any) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for part in arguments:
            yield from _types(part)
    elif annotation is type(None):
        yield "nothing"
    elif str(origin) == "typing.Annotated" or getattr(annotation, "__metadata__", None):
        yield from _types(arguments[0])
    elif str(origin) == "typing.Literal":
        yield ", ".join(f"`{value}`" for value in arguments)
    elif origin is tuple:
        yield f"list of {_type(arguments[0])}"
    elif origin is dict:
        yield f"table of {_type(arguments[1])}"
    else:
        names = {"Path": "path", "str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
        name = getattr(annotation, "__name__", str(annotation))
        yield f"[table](#{name.lower()})" if any(kind is annotation for kind in CONFIGS) else names.get(name, name)


def _default(value: Any) -> str:
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, CONFIGS):
        return "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(columns: tuple[str, ...], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
