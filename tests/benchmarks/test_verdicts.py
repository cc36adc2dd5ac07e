"""What the script about whole verdicts says of rows that are not there."""

import pytest

from benchmarks import verdicts


def test_without_rows_one_line_says_what_to_give(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["verdicts", "--seed", "7"])
    with pytest.raises(SystemExit) as ended:
        verdicts.main()
    assert ended.value.code == 2
    assert "no rows of seed 7; say --models, or --rows of earlier calls" in capsys.readouterr().err
