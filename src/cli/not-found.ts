/**
 * oclif's hook for a word that is no command: says the one that other tools call so, or the nearest one, and ends. It never asks
 * back, because a prompt in a script is a hang.
 */
import type { Hook } from '@oclif/core'
import { NoidError } from '../errors.ts'

/** What people type who come from docker, podman, virsh, lima; `ls`, `ps` and `rm` are aliases of commands. */
export const ELSEWHERE: Readonly<Record<string, string>> = {
  status: 'list',
  delete: 'destroy',
  remove: 'destroy',
  down: 'destroy',
  kill: 'stop',
  run: 'create',
  up: 'create',
  launch: 'create',
  inspect: 'info',
  show: 'info',
  sh: 'exec',
  ssh: 'exec',
  shell: 'exec',
  attach: 'exec',
  copy: 'cp',
  tcpdump: 'capture',
  images: 'image list',
  networks: 'network list',
  ports: 'port list',
  publish: 'port add',
  expose: 'port add',
  setup: 'doctor',
  'network delete': 'network remove',
  'network destroy': 'network remove',
  'network inspect': 'network info',
  'network show': 'network info',
  'image pull': 'image import',
}

const hook: Hook.CommandNotFound = async ({ id, config }) => {
  const known = config.commands.filter((c) => !c.hidden).map((c) => c.id.replaceAll(':', ' '))
  const { typed, near } = meant(id.split(/[: ]/), known)
  const topic = typed.split(' ', 1)[0] as string
  const help = known.some((k) => k.startsWith(`${topic} `)) ? `noid ${topic} --help` : 'noid help'
  throw new NoidError('INVALID_INPUT', {
    what: `"${typed}" is not a noid command`,
    hint: near === undefined ? `${help} lists them` : `did you mean: noid ${near}`,
  })
}
export default hook

/** The command that these words were likely meant to be. The last ones may be its operands: `creat web`. */
function meant(
  words: readonly string[],
  known: readonly string[],
): { readonly typed: string; readonly near: string | undefined } {
  for (const n of [2, 1]) {
    const typed = words.slice(0, n).join(' ')
    if (Object.hasOwn(ELSEWHERE, typed)) return { typed, near: ELSEWHERE[typed] }
  }
  for (let n = words.length; n > 0; n--) {
    const typed = words.slice(0, n).join(' ')
    const near = nearest(typed, known)
    if (near !== undefined) return { typed, near }
  }
  return { typed: words.join(' '), near: undefined }
}

/** The known word with the smallest edit distance, when that is small enough to be a slip. */
function nearest(typed: string, known: readonly string[]): string | undefined {
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor((typed.split(' ').at(-1) ?? '').length / 3)) + 1
  for (const word of known) {
    const d = distance(typed, word)
    if (d < bestDistance) {
      best = word
      bestDistance = d
    }
  }
  return best
}

/** Levenshtein's distance, one row at a time. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(swap, (row[j] as number) + 1, (next[j - 1] as number) + 1))
    }
    row = next
  }
  return row[b.length] as number
}
