/**
 * Debian packages, fetched and unpacked, never installed: apt-get of this machine gets them from the sources that it
 * has, checked as it checks everything; dpkg-deb unpacks them. No rights are needed.
 *
 * A package that was fetched stays, under the name apt gives it (NAME_VERSION_ARCH.deb), and is not fetched again
 * until apt knows another version.
 */
import { existsSync, mkdirSync, readdirSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import { NoidError } from '../errors.ts'
import { run } from './run.ts'

const APT_MS = 10 * 60_000
const UNPACK_MS = 120_000
/** The kernel with drivers for virtual machines alone; what it depends on is the newest one's own package. */
const KERNEL = 'linux-image-cloud-amd64'

export interface Debs {
  /** Package → file. */
  readonly files: ReadonlyMap<string, string>
  /** Package → version, for people. */
  readonly versions: ReadonlyMap<string, string>
}

/** The files of these packages in the newest version that apt's lists name; `KERNEL` stands for the kernel's own package. */
export async function fetchDebs(
  names: readonly string[],
  cache: string,
  work: string,
  say: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<Debs> {
  mkdirSync(cache, { recursive: true })
  const files = new Map<string, string>()
  const versions = new Map<string, string>()
  const missing: string[] = []
  const wanted = await candidates(names, signal)
  for (const [name, { version, arch }] of wanted) {
    versions.set(name, version)
    const file = join(cache, fileName(name, version, arch))
    if (existsSync(file)) files.set(name, file)
    else missing.push(`${name}=${version}`)
  }
  if (missing.length === 0) return { files, versions }
  say(`fetching ${missing.map((m) => m.slice(0, m.indexOf('='))).join(', ')}`)
  const into = join(work, 'debs')
  mkdirSync(into, { recursive: true })
  try {
    await run('apt-get', ['-q', '-y', '-o', 'APT::Sandbox::User=', 'download', ...missing], {
      cwd: into,
      signal,
      timeoutMs: APT_MS,
    })
  } catch (e) {
    signal?.throwIfAborted()
    throw new NoidError('IMAGE_BUILD_FAILED', {
      image: names.join(', '),
      why: `the packages could not be fetched: ${(e as Error).message}`,
      hint: 'as root: apt-get update; a package source of Debian is needed',
    })
  }
  for (const f of readdirSync(into)) renameSync(join(into, f), join(cache, f))
  for (const [name, { version, arch }] of wanted) {
    const file = join(cache, fileName(name, version, arch))
    if (!existsSync(file))
      throw new NoidError('IMAGE_BUILD_FAILED', { image: name, why: `apt-get did not bring ${name}` })
    files.set(name, file)
  }
  return { files, versions }
}

/** apt writes the version's colon as %3a. */
const fileName = (name: string, version: string, arch: string): string =>
  `${name}_${version.replaceAll(':', '%3a')}_${arch}.deb`

/** What the kernel's meta package depends on now. */
export async function kernelPackage(signal: AbortSignal | undefined): Promise<string> {
  const text = await run('apt-cache', ['show', '--no-all-versions', KERNEL], { signal, timeoutMs: APT_MS }).catch(
    () => '',
  )
  const name = /^Depends:\s*(linux-image-\S+)/m.exec(text)?.[1]
  if (name === undefined)
    throw new NoidError('IMAGE_BUILD_FAILED', {
      image: 'kernel',
      why: `apt knows no package ${KERNEL}`,
      hint: 'as root: apt-get update; a package source of Debian is needed. Or bring your own: noid image import --kernel FILE',
    })
  return name
}

async function candidates(
  names: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Map<string, { version: string; arch: string }>> {
  const text = await run('apt-cache', ['show', '--no-all-versions', ...names], { signal, timeoutMs: APT_MS }).catch(
    () => '',
  )
  const found = new Map<string, { version: string; arch: string }>()
  for (const record of text.split(/\n\n+/)) {
    const field = (f: string): string | undefined => new RegExp(`^${f}: (.*)$`, 'm').exec(record)?.[1]
    const [name, version, arch] = [field('Package'), field('Version'), field('Architecture')]
    if (name !== undefined && version !== undefined && arch !== undefined && !found.has(name))
      found.set(name, { version, arch })
  }
  const unknown = names.filter((n) => !found.has(n))
  if (unknown.length > 0)
    throw new NoidError('IMAGE_BUILD_FAILED', {
      image: unknown.join(', '),
      why: `apt knows no package ${unknown.join(', ')}`,
      hint: 'as root: apt-get update; a package source of Debian is needed',
    })
  return found
}

/** Unpack a package's files into a directory. */
export function unpackDeb(file: string, into: string, signal: AbortSignal | undefined): Promise<string> {
  return run('dpkg-deb', ['--extract', file, into], { signal, timeoutMs: UNPACK_MS })
}
