/**
 * Write docs/errors.md from the catalogue in src/errors.ts. A test keeps the two equal.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const ROOT = new URL('..', import.meta.url)

/** The page's text. Parameters of a sentence are shown as *name*. */
export async function errorsPage() {
  const { catalogue } = await import('../src/errors.ts')
  const names = new Proxy({}, { get: (_, key) => `*${String(key)}*` })
  const groups = groupsOf(readFileSync(new URL('src/errors.ts', ROOT), 'utf8'))
  const parts = [
    '# Errors',
    '',
    'Every error noid tells, by code. A code never changes its meaning. On a terminal it is one sentence with the code and a',
    'hint; with `--json` it is `{"error": {"code", "message", "hint", "details"}}` on stdout, and `details` has the words in',
    'italics below as fields. The exit code is 2 for wrong usage and 1 for the rest; `noid exec` ends with its command’s own.',
    '',
    'This page is generated from `src/errors.ts` by `npm run generate`.',
  ]
  for (const { title, codes } of groups) {
    parts.push(
      '',
      `## ${title[0].toUpperCase()}${title.slice(1)}`,
      '',
      '| code | HTTP | exit | what it says | what to do |',
      '|---|---|---|---|---|',
    )
    for (const code of codes) {
      const e = catalogue[code]
      const cell = (text) => text.replaceAll('|', '\\|')
      parts.push(
        `| \`${code}\` | ${e.status} | ${e.exit} | ${cell(e.message(names))} | ${cell(e.hint?.(names) ?? '')} |`,
      )
    }
  }
  return `${parts.join('\n')}\n`
}

/** The catalogue's own order and its `// -- title ----` lines. */
function groupsOf(source) {
  const groups = []
  for (const line of source.split('\n')) {
    const title = /^ {2}\/\/ -- (.+?) -+$/.exec(line)
    const code = /^ {2}([A-Z][A-Z0-9_]+): entry\(/.exec(line)
    if (title) groups.push({ title: title[1], codes: [] })
    else if (code) groups.at(-1).codes.push(code[1])
  }
  return groups
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  writeFileSync(new URL('docs/errors.md', ROOT), await errorsPage())
