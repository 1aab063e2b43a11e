"""
The output folder
=================

Results are tables in CSV. ``steps.json`` records the steps begun and finished, with their arguments.
"""

import json

from geofloor._files.atomic import atomic_path, write_json


def write_table(path, table):
    """Write a table as CSV, and print it."""
    with atomic_path(path) as partial:
        table.to_csv(partial, index=False)
    print(f"{path}:\n{table.to_string(index=False, max_rows=20, float_format='{:.4g}'.format)}")


class Record:
    """Steps begun in a folder, and their arguments."""

    def __init__(self, folder):
        self.path = folder / "steps.json"
        self.steps = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def finished(self, step):
        return self.steps.get(step, {}).get("finished", False)

    def check(self, step, arguments):
        """Refuse a step begun with other arguments."""
        begun = self.steps.get(step)
        if begun is None:
            return
        made, given = begun["arguments"], json.loads(json.dumps(arguments))
        other = sorted(name for name in {**made, **given} if made.get(name) != given.get(name))
        if other:
            raise SystemExit(
                f"{self.path.parent} holds the step {step!r} with other values of {', '.join(other)}; use those, or "
                "another --output."
            )

    def note(self, step, arguments, *, finished):
        """Record a step as begun or finished."""
        self.steps[step] = {"finished": finished, "arguments": arguments}
        write_json(self.path, self.steps)
