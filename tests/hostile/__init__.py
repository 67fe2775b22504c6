"""Wrong inputs made by the thousand from right ones, by class, and the judge of what the verbs answer to them."""
