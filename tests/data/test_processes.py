import subprocess
import sys


def test_a_missing_main_guard_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from vitsplit.data.processes import map_in_processes\n"
        "from vitsplit.errors import DataError\n"
        "try:\n"
        "    list(map_in_processes(str, range(1000), 2, doing='reads files', alone='do so alone'))\n"
        "except DataError as error:\n"
        "    print('message:', error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert "message:" in done.stdout and 'if __name__ == "__main__":' in done.stdout
