"""Parts that endpoints share: state, generation, conversations, grammars, tools, request bodies and answer shapes."""
