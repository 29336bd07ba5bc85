"""`.eps` files in editors and documents: a TextMate grammar (`eps.tmLanguage.json`) and a Pygments lexer."""
