"""https://docs.runpod.io/serverless/workers/handler-functions: initialize outside the handler; with a sibling and arguments."""

import argparse

import runpod
from model import Model

parser = argparse.ArgumentParser()
parser.add_argument("--model-tag", default="small")
MODEL = Model(parser.parse_args().model_tag)


def handler(job):
    return MODEL.predict(job["input"]["prompt"])


runpod.serverless.start({"handler": handler})
