"""https://docs.runpod.io/serverless/development/validation"""

import runpod
from runpod.serverless.utils.rp_validator import validate

schema = {
    "text": {"type": str, "required": True},
    "max_length": {"type": int, "required": False, "default": 100},
    "scale": {
        "type": float,
        "required": False,
        "default": None,
        "constraints": lambda scale: scale is None or scale > 0,
    },
}


def handler(event):
    validated = validate(event["input"], schema)
    if "errors" in validated:
        return {"error": validated["errors"]}
    values = validated["validated_input"]
    return {"output": values["text"][: values["max_length"]], "scale": values["scale"]}


runpod.serverless.start({"handler": handler})
