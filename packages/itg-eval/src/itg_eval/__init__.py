"""itg-eval: measures what frame selection does to a Video LLM."""
