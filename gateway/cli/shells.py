"""Completion for bash, zsh and fish: their scripts, and what is told to them.

bash gets words that it has already cut at ``:`` and ``=``, and puts what it is given into the command line as it is; so
here the words are read from the whole line, and what is special to a shell is escaped.  It counts the cursor's place in
characters or bytes, as its locale has it, so it cuts the line itself.  zsh and fish do all that by themselves.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import click
from click import shell_completion

from gateway.cli.options import common

VARIABLE: Final = "_GATEWAY_COMPLETE"

_SPECIAL: Final = re.compile(r"""([\s!"#$&'()*,;<=>?@\[\\\]^`{|}~])""")

_IN_QUOTES: Final = re.compile(r"""(["$\\`])""")
_ESCAPED: Final = frozenset('"$\\`')
"""Before these a backslash counts between double quotes, before others it stands for itself."""

_BASH: Final = """\
%(complete_func)s() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${line#plain,}") ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="${COMP_WORDS[COMP_CWORD]}" \\
        %(complete_var)s=bash_complete %(prog_name)s)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace
    fi
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH: Final = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a directories others response
    local kind value description
    response=("${(@f)$(env COMP_WORDS="${(j: :)words[1,CURRENT]}" COMP_CWORD=$((CURRENT-1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for kind value description in "${response[@]}"; do
        case $kind in
            file) _path_files -f ;;
            plain) if [[ $value == */ ]]; then directories+=("$value"); else others+=("$value"); fi ;;
        esac
    done
    (( ${#directories} )) && compadd -U -S '' -a directories
    (( ${#others} )) && compadd -U -a others
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = """\
function %(complete_func)s
    for completion in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) \\
        %(prog_name)s)
        set -l told (string split -m 1 , -- $completion)
        switch $told[1]
            case file
                __fish_complete_path $told[2]
            case plain
                printf '%%s\\n' $told[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class Bash(shell_completion.BashComplete):
    """What bash asks, and is told."""

    source_template = _BASH

    @staticmethod
    def _check_version() -> None:
        """Any bash of the last ten years will do; asking for its version would take longer than the answer."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is completed, and that one, from the whole line."""
        words = _words(os.environ["COMP_LINE"])
        return words[1:-1], words[-1]

    def get_completions(self, args: list[str], incomplete: str) -> list[Any]:
        """The same, as they are to take the place of the word that bash has."""
        word = os.environ["COMP_WORD"]
        found = super().get_completions(args, incomplete)
        cut = 0
        for breaker in ":=":
            if breaker in incomplete and breaker not in word[:-1]:
                cut = max(cut, incomplete.rindex(breaker) + 1)
        for item in found:
            if item.type == "plain":
                item.value = _quoted(item.value[cut:], word[:1])
        return found


class Zsh(shell_completion.ZshComplete):
    """What zsh is told."""

    source_template = _ZSH

    def format_completion(self, item: Any) -> str:
        """Three lines; descriptions are not shown."""
        return f"{item.type}\n{item.value}\n_"


class Fish(shell_completion.FishComplete):
    """As click has it, but for names with a comma."""

    source_template = _FISH


def _words(line: str) -> list[str]:
    """The words of the beginning of a command line as bash reads them; the last, maybe empty, is being typed."""
    words = [""]
    quote = ""
    letters = iter(line)
    begun = False
    for letter in letters:
        if quote == "'" or (quote and letter == quote):
            if letter == quote:
                quote = ""
            else:
                words[-1] += letter
        elif letter == "\\":
            escaped = next(letters, "")
            words[-1] += escaped if not quote or escaped in _ESCAPED else letter + escaped
            begun = True
        elif not quote and letter in "'\"":
            quote = letter
            begun = True
        elif not quote and letter in " \t\n":
            if begun:
                words.append("")
            begun = False
        else:
            words[-1] += letter
            begun = True
    return words


def _quoted(text: str, quote: str) -> str:
    """How bash reads ``text``, after the quote that was opened, if any."""
    if quote == "'":
        return text.replace("'", "'\\''")
    return (_IN_QUOTES if quote == '"' else _SPECIAL).sub(r"\\\1", text)


SHELLS: Final[dict[str, type[shell_completion.ShellComplete]]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}


def answer(command: click.Command) -> None:
    """Do what the shell's script asks for, and end the process."""
    from gateway.cli.completing import end_in_time

    end_in_time()
    for name, kind in SHELLS.items():
        shell_completion.add_completion_class(kind, name)
    command(prog_name="gateway", complete_var=VARIABLE)


@click.command()
@common
@click.argument("shell", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script that has a shell complete commands, options and names in the store.

    \b
      in ~/.bashrc:                  eval "$(gateway completion bash)"
      in ~/.zshrc, after compinit:   eval "$(gateway completion zsh)"
      once, for fish:                gateway completion fish > ~/.config/fish/completions/gateway.fish

    Names in the store are looked up while you type, for less than a second.
    """
    from gateway.cli import output
    from gateway.cli.app import gateway

    output.line(SHELLS[shell](gateway, {}, "gateway", VARIABLE).source().rstrip())
