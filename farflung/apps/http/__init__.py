"""An HTTP interface in OpenAI's dialect over any `Generator`."""
