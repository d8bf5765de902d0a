"""python3 dev.py train vae|encoder|flow [minutes] : go on with one model's training; the next part starts where it stopped."""

import sys

from . import flow, text, vae

TRAIN = {"vae": vae.train, "encoder": text.train, "flow": flow.train}


def main() -> None:
    name, minutes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 40
    print("done" if TRAIN[name](minutes) else "to be continued")


if __name__ == "__main__":
    main()
