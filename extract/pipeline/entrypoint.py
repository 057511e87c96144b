"""The command line that Ray notes of a program: a path in it may be no valid Unicode, which Ray would fail at."""


def note_any_command_line() -> None:
    """Has Ray note this process's command line with such bytes written out; call it before `ray.init`."""
    from ray._private import utils

    found = utils.get_entrypoint_name()

    def noted() -> str:
        return found.encode("utf-8", "backslashreplace").decode()

    if noted() != found:
        utils.get_entrypoint_name = noted
