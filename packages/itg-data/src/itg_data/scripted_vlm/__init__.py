"""A model that knows the script: an OpenAI-protocol server that answers for the scripted videos.

It stands where a vision-language model would, so that what the annotation pipeline makes of its
answers can be held against the truth. It is told nothing that a model is not told: it recognises
pictures by their pixels among the frames of a scripted set, finds what the script shows at that
time, and works out the rest from the text of the request. How often it errs, refuses, babbles or
fails is adjustable and seeded.

What it expects of a request to `/v1/chat/completions`:

- The stage is the name of the JSON schema in `response_format`, or where none is sent the first
  word of the system message's first line, a Markdown heading: `# caption ...`. Stages are `cues`,
  `caption`, `retrieve`, `classify` and `check`.
- The last user message is text, or parts of text and of `image_url` with base64 `data:` addresses.
  Its text holds the inputs as one JSON object: `question`, `answer`, `cues` (strings), `captions`
  (strings, clip 0 first), as far as the stage has them.

And what it answers, as one JSON object:

| stage | sees | answers |
|---|---|---|
| `cues` | question, answer | `{"cues": ["red circle", "moves left"]}` |
| `caption` | the pictures of one clip, cues | `{"caption": "A red circle moves left."}` |
| `retrieve` | question, captions | `{"explanation": "...", "clips": [2, 3]}`, `[]` for none |
| `classify` | question, answer | `{"motion": true, "existence": false}` |
| `check` | question, pictures | `{"relevant": [true, false]}`, one for each picture |
"""
