/** A reporter for node --test that writes the closing counts as JSON, so that rounds can be added up. */
export default async function* counts(events) {
  for await (const e of events) {
    // Each file has a summary of its own; the one without a file is the whole round's.
    if (e.type === 'test:summary' && e.data.file === undefined) yield JSON.stringify(e.data.counts)
  }
}
