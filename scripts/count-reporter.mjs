/**
 * A reporter for one test file, beside node's own text: what the runner (test.mjs) adds up, as one line of JSON.
 *
 * @returns {AsyncGenerator<string>} {counts, failures: names and what was said, skips: reasons}
 */
export default async function* count(events) {
  const failures = []
  const skips = []
  const path = []
  for await (const { type, data } of events) {
    if (type === 'test:start') path.splice(data.nesting, path.length, data.name)
    // A suite fails with its tests; only they are named.
    if (type === 'test:fail' && data.todo === undefined && data.details.error?.failureType !== 'subtestsFailed')
      failures.push([[...path.slice(0, data.nesting), data.name].join(' › '), ...said(data)].join('\n      '))
    if (type === 'test:pass' && typeof data.skip === 'string') skips.push(data.skip)
    // Each file has a summary of its own; the one without a file is the whole run's.
    if (type === 'test:summary' && data.file === undefined)
      yield JSON.stringify({ counts: data.counts, failures, skips })
  }
}

/** Of what a failure said, this is enough to know which line of a test it was: a run's record may keep no more than its end. */
const LINES = 12

/** Lines of its message, and where in the test's own file. */
function said({ file, details }) {
  const error = details.error?.cause ?? details.error
  const message = String(error?.message ?? error)
    .split('\n')
    .slice(0, LINES)
  const at =
    file &&
    String(error?.stack)
      .split('\n')
      .find((l) => l.startsWith('    at ') && l.includes(file))
  return at ? [...message, at.trim()] : message
}
