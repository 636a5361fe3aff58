/**
 * This machine's package sources, as apt itself has read them: for builds, and for apt in the VMs.
 *
 * Only Debian's own: third-party sources are the host's affair. Credentials never go into an image.
 */
import { statSync } from 'node:fs'
import { NoidError } from '../errors.ts'
import { run } from './run.ts'
import { hashText } from './store.ts'

const APT_MS = 60_000

export interface Sources {
  /** sources.list(5) lines. */
  readonly lines: readonly string[]
  readonly suite: string
  /** Hash of which index files there are: another one after an `apt-get update` that brought something. */
  readonly state: string
}

interface Target {
  readonly uri: string
  readonly suite: string
  readonly component: string
  readonly origin: string
  readonly file: string
}

const FORMAT = '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(FILENAME)'

export async function sourcesOf(signal: AbortSignal | undefined): Promise<Sources> {
  const text = await run('apt-get', ['indextargets', '--format', FORMAT, 'Created-By: Packages'], {
    signal,
    timeoutMs: APT_MS,
  })
  const targets = text.split('\n').flatMap((line): Target[] => {
    const [uri, suite, component, origin, file] = line.split('|')
    return file === undefined ? [] : [{ uri: plain(uri), suite, component, origin, file }]
  })
  const debian = targets.filter((t) => t.origin === 'Debian' && /^https?:/.test(t.uri))
  const main = debian.find((t) => !/-(updates|security|backports|proposed-updates)$/.test(t.suite))
  if (main === undefined)
    throw new NoidError('IMAGE_BUILD_FAILED', {
      image: 'debian',
      why: 'this machine has no package source of Debian',
      hint: 'as root: apt-get update; or import a disk of your own: noid image import',
    })
  const wanted = debian.filter((t) => !t.suite.includes('backports') && !t.suite.includes('proposed'))
  const components = new Map<string, string[]>()
  for (const t of wanted) {
    const key = `deb ${t.uri} ${t.suite}`
    components.set(key, [...new Set([...(components.get(key) ?? []), t.component])].sort())
  }
  const stats = wanted.flatMap((t) => stat(t.file))
  return {
    lines: [...components].map(([key, list]) => `${key} ${list.join(' ')}`),
    suite: main.suite,
    state: hashText(...stats.map((s) => `${s.size} ${s.mtime}`)),
  }
}

/** apt leaves an index's file compressed or not, under one name. */
function stat(file: string): { size: number; mtime: number }[] {
  for (const end of ['', '.lz4', '.gz', '.xz', '.zst', '.bz2']) {
    const s = statSync(file + end, { throwIfNoEntry: false })
    if (s !== undefined) return [{ size: s.size, mtime: Math.floor(s.mtimeMs / 1000) }]
  }
  return []
}

/** "http://user:secret@mirror/debian" → "http://mirror/debian" */
export function plain(uri: string): string {
  return uri.replace(/^(\w+:\/\/)[^/@]*@/, '$1')
}

/** Settings of this machine's apt without which its sources cannot be used: how old an index may be, the proxy. */
const SETTING = /^(Acquire::(?:Check-Valid-Until|Check-Date|http::Proxy|https::Proxy|Retries)) "(.*)";$/gm

/** apt.conf(5) lines. */
export async function aptSettings(signal: AbortSignal | undefined): Promise<string> {
  const text = await run('apt-config', ['dump'], { signal, timeoutMs: APT_MS }).catch(() => '')
  return [...text.matchAll(SETTING)]
    .filter(([, , value]) => value !== '' && !/\/\/(localhost|127\.|\[::1\])/.test(plain(value)))
    .map(([, key, value]) => `${key} "${plain(value)}";`)
    .join('\n')
}
