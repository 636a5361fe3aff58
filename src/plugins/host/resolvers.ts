/**
 * The host's name servers, live: what /etc/resolv.conf says now, handed to every data plane when it changes.
 *
 * Owns: watching the files (fs.watch where it works, and a poll, because a resolv.conf that is replaced by rename, bind-mounted
 * or on a network file system is missed by any watch) and deciding whether systemd-resolved's stub is usable.
 * Never does: resolving a guest's names.
 *
 * Theory. resolv.conf(5) allows several `nameserver` lines, tried in order. 127.0.0.53 is systemd-resolved's stub (systemd-resolved(8));
 * the servers behind it are in /run/systemd/resolve/resolv.conf. The stub knows split DNS, so it is preferred while it answers.
 * No name server at all is a state like others: the machine is offline, and a name is SERVFAIL until it is back.
 * A router that is its network's name server is often known by its link-local address, with a zone (fe80::1%eth0, RFC 4007 §11). Data planes
 * are told the link's index instead of its name (fe80::1%3); a link that is made anew has another one, which the poll notices.
 */
import { createSocket } from 'node:dgram'
import { type FSWatcher, watch } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { basename, dirname } from 'node:path'
import { linkIndex } from '../../sys/netdev.ts'

const POLL_MS = 2000
const STUB = '127.0.0.53'
const STUB_WAIT_MS = 700
/** resolv.conf(5): MAXNS is 3; more are harmless and useful. */
const SERVERS_MAX = 8

export interface ResolverFiles {
  readonly conf: string
  /** Where systemd-resolved lists the servers behind its stub. */
  readonly behindStub: string
}
const FILES: ResolverFiles = { conf: '/etc/resolv.conf', behindStub: '/run/systemd/resolve/resolv.conf' }

/**
 * The `nameserver` lines of a resolv.conf, in order, without repetition; a zone becomes its link's index.
 * @param indexOf the index of a link, negative when there is none of that name
 */
export function parseResolvConf(text: string, indexOf: (ifname: string) => number = linkIndex): string[] {
  const servers: string[] = []
  for (const line of text.split('\n')) {
    const [keyword, address] = line.trim().split(/\s+/, 2)
    if (keyword !== 'nameserver' || !address || !isIP(address)) continue
    const server = numbered(address, indexOf)
    if (server !== undefined && !servers.includes(server)) servers.push(server)
  }
  return servers.slice(0, SERVERS_MAX)
}

/** A link-local address with its zone as a number, anything else without one; undefined when the link is not there. */
function numbered(address: string, indexOf: (ifname: string) => number): string | undefined {
  const [bare = '', zone] = address.split('%')
  if (zone === undefined || !/^fe[89ab]/i.test(bare)) return bare
  const index = /^[1-9]\d*$/.test(zone) ? Number(zone) : indexOf(zone)
  return index > 0 ? `${bare}%${index}` : undefined
}

/** Does a DNS server answer at all? Any answer counts, also an error. */
export function answers(address: string, port = 53, waitMs = STUB_WAIT_MS): Promise<boolean> {
  return new Promise((resolve) => {
    const s = createSocket(isIP(address) === 6 ? 'udp6' : 'udp4')
    const end = (ok: boolean) => {
      clearTimeout(timer)
      s.removeAllListeners()
      s.on('error', () => {})
      try {
        s.close()
      } catch {}
      resolve(ok)
    }
    const timer = setTimeout(() => end(false), waitMs)
    s.on('error', () => end(false))
    s.on('message', () => end(true))
    // RFC 1035 §4.1: id, RD, one question: "." NS IN
    const query = Buffer.from([0x4e, 0x6f, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1])
    s.connect(port, address, () => s.send(query))
  })
}

/** What the files say now. A stub that does not answer is replaced by the servers behind it. */
export async function readResolvers(files: ResolverFiles = FILES, stubAnswers = answers): Promise<string[]> {
  const servers = parseResolvConf(await readFile(files.conf, 'utf8').catch(() => ''))
  if (!servers.includes(STUB) || (await stubAnswers(STUB))) return servers
  const behind = parseResolvConf(await readFile(files.behindStub, 'utf8').catch(() => ''))
  return behind.length > 0 ? behind : servers
}

export class Resolvers {
  readonly #files: ResolverFiles
  readonly #changed: (servers: readonly string[]) => void
  readonly #poll: NodeJS.Timeout
  readonly #watchers: FSWatcher[] = []
  #current: readonly string[] = []
  readonly #first: Promise<void>
  #known = false
  #reading = false
  #again = false

  /** `changed` is called when the list differs from the last one; not for the first. */
  constructor(changed: (servers: readonly string[]) => void, files: ResolverFiles = FILES) {
    this.#changed = changed
    this.#files = files
    for (const f of [files.conf, files.behindStub]) {
      try {
        const w = watch(dirname(f), { persistent: false }, (_, name) => {
          if (name === null || name === basename(f)) void this.#read()
        })
        w.on('error', () => w.close())
        this.#watchers.push(w)
      } catch {
        // No such directory: the poll sees it when it comes.
      }
    }
    this.#poll = setInterval(() => void this.#read(), POLL_MS)
    this.#poll.unref()
    this.#first = this.#read()
  }

  async current(): Promise<readonly string[]> {
    await this.#first
    return this.#current
  }

  close(): void {
    clearInterval(this.#poll)
    for (const w of this.#watchers) w.close()
  }

  async #read(): Promise<void> {
    if (this.#reading) {
      this.#again = true
      return
    }
    this.#reading = true
    try {
      do {
        this.#again = false
        const servers = await readResolvers(this.#files)
        if (servers.join() !== this.#current.join()) {
          this.#current = servers
          if (this.#known) this.#changed(servers)
        }
        this.#known = true
      } while (this.#again)
    } finally {
      this.#reading = false
    }
  }
}
