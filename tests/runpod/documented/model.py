"""What `model_at_import.py` finds beside itself."""


class Model:
    def __init__(self, tag):
        self.tag = tag

    def predict(self, prompt):
        return f"{self.tag}: {prompt}"
