"""python3 dev.py train encoder|vae|data|flow [minutes] : go on with one model's training; the next part starts where it stopped.
python3 dev.py train again : tiny/ as the start of more training of the flow.
python3 dev.py train export|evaluate : write tiny/, measure it.
"""

import sys

from . import again, data, evaluate, export, flow, text, vae

TRAIN = {"encoder": text.train, "vae": vae.train, "data": data.prepare, "flow": flow.train}
OTHERS = {"again": again.main, "export": export.main, "evaluate": evaluate.main}


def main() -> None:
    name, minutes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 40
    if name in OTHERS:
        OTHERS[name]()
    else:
        print("done" if TRAIN[name](minutes) else "to be continued")


if __name__ == "__main__":
    main()
