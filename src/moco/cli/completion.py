"""`moco completion`: what a shell needs to complete commands, recipes and flags."""

import contextlib
import importlib
import io
import json
import re
from dataclasses import dataclass
from typing import Literal

import tyro

from moco.cli import COMMANDS
from moco.cli.show import FLAGS
from moco.recipes import RECIPES


@dataclass(frozen=True)
class Completion:
    """Print a script that completes commands, recipes and flags; written anew after an update."""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """bash: source it from ~/.bashrc; zsh: from ~/.zshrc; fish: save it in ~/.config/fish/completions."""
    json: bool = False
    """Print the flags of every command as JSON instead."""


def run(words: list[str]) -> int:
    """Run the command with these words and return its exit code."""
    call = tyro.cli(Completion, args=words, prog="moco completion", config=FLAGS)
    flags = {name: _flags(name) for name in COMMANDS}
    if call.json:
        print(json.dumps(flags))
    elif call.shell == "fish":
        print(_fish(flags))
    else:
        print(("autoload -U +X bashcompinit && bashcompinit\n" if call.shell == "zsh" else "") + _bash(flags))
    return 0


def _flags(command: str) -> list[str]:
    """The flags that a command's help names."""
    shown = io.StringIO()
    run_command = importlib.import_module(f"moco.cli.{command.replace('-', '_')}").run
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run_command(["--help"])
    found = re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue()))
    return list(dict.fromkeys(found))


def _bash(flags: dict[str, list[str]]) -> str:
    cases = "\n".join(f'      {name}) words="{" ".join(known)}" ;;' for name, known in flags.items())
    return f"""_moco() {{
  local now=${{COMP_WORDS[COMP_CWORD]}} words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{" ".join(flags)}"
  elif [[ $now == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  elif [ "$COMP_CWORD" -eq 2 ] && [[ ${{COMP_WORDS[1]}} == pretrain || ${{COMP_WORDS[1]}} == recipes ]]; then
    words="{" ".join(RECIPES)}"
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$now"))
  else
    COMPREPLY=($(compgen -f -- "$now"))
  fi
}}
complete -o filenames -F _moco moco"""


def _fish(flags: dict[str, list[str]]) -> str:
    lines = [
        f'complete -c moco -f -n __fish_use_subcommand -a {name} -d "{does}"'
        for name, (_, does) in COMMANDS.items()
    ]
    for name, known in flags.items():
        within = f'-n "__fish_seen_subcommand_from {name}"'
        lines += [f"complete -c moco {within} -l {flag.removeprefix('--')}" for flag in known]
    for name in "pretrain", "recipes":
        within = f'-n "__fish_seen_subcommand_from {name}"'
        lines.append(f'complete -c moco {within} -a "{" ".join(RECIPES)}"')
    return "\n".join(lines)
