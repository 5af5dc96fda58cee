"""Examples: handler files as RunPod serverless runs them."""
