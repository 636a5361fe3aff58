/**
 * `noid exec [NAME] [flags] [--] [COMMAND...]`, cut into noid's own words and the command's.
 *
 * A `--` always begins the command. Without one, the first word after NAME does, and everything behind it belongs to
 * the command, flags too: `noid exec web ls -l` is what people type.
 */
const VALUE_FLAGS = new Set(['-e', '--env', '-w', '--workdir', '-u', '--user', '--host'])

export interface SplitExec {
  readonly own: readonly string[]
  readonly command: readonly string[]
}

export function splitExec(argv: readonly string[]): SplitExec {
  let named = false
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] as string
    if (word === '--') return { own: argv.slice(0, i), command: argv.slice(i + 1) }
    if (VALUE_FLAGS.has(word)) i += 1
    else if (!word.startsWith('-')) {
      if (named) return { own: argv.slice(0, i), command: argv.slice(i) }
      named = true
    }
  }
  return { own: argv, command: [] }
}

/** "K=V", or "K" for this process's own value of K. */
export function parseEnv(words: readonly string[], env: NodeJS.ProcessEnv): Record<string, string> {
  const out: Record<string, string> = {}
  for (const w of words) {
    const eq = w.indexOf('=')
    if (eq > 0) out[w.slice(0, eq)] = w.slice(eq + 1)
    else if (eq < 0 && env[w] !== undefined) out[w] = env[w]
  }
  return out
}

/** What opens when no command is named: the VM's bash, or its sh. */
export const LOGIN_SHELL: readonly string[] = [
  '/bin/sh',
  '-c',
  'command -v bash >/dev/null && exec bash -l; exec sh -l',
]
