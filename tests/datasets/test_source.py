from geofloor.datasets._source import SourceFile, from_some_line

SOURCE = '''
class Scaler:
    def fit(self, values):
        """Find the largest value."""
        # a comment line
        largest = max(values)
        return largest  # kept


# TODO(ann): Should the values be sorted before the maximum is taken?
# The order of equal values is not changed by this.
def outer():
    def inner():
        pass
'''


def test_code_has_no_docstring_and_no_comment_lines():
    file = SourceFile("pkg/scaler.py", SOURCE, 320)
    assert [(node.name, in_class) for node, in_class in file.functions] == [("fit", True), ("outer", False)]
    assert file.code(file.functions[0][0]) == ["largest = max(values)", "return largest  # kept"]


def test_remarks_are_sentences_of_comments_without_tags():
    assert list(SourceFile("pkg/scaler.py", SOURCE, 320).remarks()) == [
        "Should the values be sorted before the maximum is taken?",
        "The order of equal values is not changed by this.",
    ]


def test_test_files_are_known_by_their_path():
    names = ["pkg/tests/data.py", "pkg/test_io.py", "pkg/io_test.py", "pkg/testing_tools.py"]
    assert [SourceFile(name, "", 320).is_test for name in names] == [True, True, True, False]


def test_lines_from_some_start_leave_the_full_length():
    lines = [f"line {number}" for number in range(100)]
    chosen = from_some_line(lines, 200)
    assert chosen == lines[-len(chosen) :]
    assert sum(map(len, chosen)) + len(chosen) >= 200
    assert from_some_line(lines[:5], 200) == lines[:5]
