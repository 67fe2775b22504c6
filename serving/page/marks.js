/** Places in a text: the server counts characters (code points), a string of JavaScript counts UTF-16 units. */

/**
 * Return the pieces of a text in order: `[text, span]`, where span is undefined between spans.
 *
 * Example: "李明在北京", [{begin: 0, end: 2}, {begin: 3, end: 5}]  ->  [["李明", first], ["在"], ["北京", second]]
 */
export function pieces(text, spans) {
  const characters = Array.from(text);
  const found = [];
  let place = 0;
  for (const span of [...spans].sort((a, b) => a.begin - b.begin)) {
    if (span.begin > place) found.push([characters.slice(place, span.begin).join("")]);
    found.push([characters.slice(span.begin, span.end).join(""), span]);
    place = span.end;
  }
  if (place < characters.length) found.push([characters.slice(place).join("")]);
  return found;
}

/** Return one line of at most `length` characters. */
export function short(text, length = 60) {
  const characters = Array.from(text.replace(/\s+/g, " ").trim());
  return characters.length <= length ? characters.join("") : `${characters.slice(0, length - 1).join("")}…`;
}
