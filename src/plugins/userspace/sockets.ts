/**
 * The sockets by which a VM without a namespace (QEMU) speaks to the data plane: bound or listening below the network's private directory.
 *
 * Owns: <dir>/n with the sockets' files, and of each `dgram` nic a second descriptor of its socket. Never does: a frame.
 *
 * Theory. The data plane may open no path. `vhost-user`: it is given the listening socket, and QEMU connects, and again when that is a new one.
 * `dgram`: it is given the bound socket, and this end connects that socket to QEMU's as soon as there is one, and again when QEMU is a new
 * process (its socket's file is another one then); both processes share the open socket, so that the data plane need not be told. From then on
 * the kernel lets in QEMU's datagrams only. QEMU sends to the path, so a new socket there is as good.
 *
 * Files belong to whoever runs the daemon, in directories that are closed to others. A QEMU that is to run as somebody else needs search permission
 * on the directories above (mode 0711 shows nothing), write permission on the back-end's socket and <dir>/n to bind its own in: a group does.
 */
import { createHash } from 'node:crypto'
import { type FSWatcher, mkdirSync, rmSync, statSync, watch } from 'node:fs'
import { join } from 'node:path'
import { SysError } from '../../sys/errno.ts'
import { close, dup } from '../../sys/fd.ts'
import {
  AF_UNIX,
  bind,
  connect,
  listen,
  SO_SNDBUF,
  SO_SNDBUFFORCE,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOCK_STREAM,
  SOL_SOCKET,
  setOption,
  socket,
} from '../../sys/socket.ts'

/** The longest path of a socket here, behind the network's directory. */
export const NAME_MAX = '/n/01234567.q'.length
/** Datagrams in flight, with the kernel's overhead: what the longest queue (net.unix.max_dgram_qlen) holds of full frames. */
const BUFFER = 2 << 20
const BACKLOG = 4

export interface SocketRecord {
  readonly kind: 'dgram' | 'vhost-user'
  readonly path: string
  /** Of dgram: where QEMU binds. */
  readonly peer: string
}

interface End {
  readonly fd: number
  readonly record: SocketRecord
  /** The peer's socket that it is connected to. */
  peer: string
}

export class NicSockets {
  readonly #dir: string
  /** Of kind dgram, by their path. */
  readonly #ends = new Map<string, End>()
  #watcher: FSWatcher | undefined

  constructor(dir: string) {
    this.#dir = join(dir, 'n')
  }

  /** What the nic of an attachment is: the same each time. */
  record(kind: SocketRecord['kind'], attachment: string): SocketRecord {
    const name = createHash('sha256').update(attachment).digest('hex').slice(0, 8)
    return { kind, path: join(this.#dir, `${name}.s`), peer: join(this.#dir, `${name}.q`) }
  }

  /** A new socket at its path, for the data plane; the caller closes the descriptor. @throws SysError */
  open(record: SocketRecord): number {
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
    this.forget(record)
    rmSync(record.path, { force: true })
    const dgram = record.kind === 'dgram'
    const fd = socket(AF_UNIX, (dgram ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK)
    if (fd < 0) throw new SysError('make a unix socket', fd)
    let r = bind(fd, { family: 'unix', path: record.path })
    if (r >= 0 && !dgram) r = listen(fd, BACKLOG)
    const second = r >= 0 && dgram ? dup(fd) : r
    if (second < 0) {
      close(fd)
      throw new SysError(`bind ${record.path}`, second)
    }
    if (dgram) {
      if (setOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER) < 0) setOption(fd, SOL_SOCKET, SO_SNDBUF, BUFFER)
      this.#ends.set(record.path, { fd: second, record, peer: '' })
      this.#watch()
      this.look()
    }
    return fd
  }

  /** Is the socket's file there, and, of a dgram, its second descriptor here? */
  holds(record: SocketRecord): boolean {
    return this.present(record) && (record.kind === 'vhost-user' || this.#ends.has(record.path))
  }

  present(record: SocketRecord): boolean {
    return identityOf(record.path) !== ''
  }

  /** Connect whoever has a new peer. Called when something happened in the directory, and now and then in any case. */
  look(): void {
    for (const end of this.#ends.values()) {
      const peer = identityOf(end.record.peer)
      if (peer === '' || peer === end.peer) continue
      // Nobody behind the file: it is an old one, and will be another one.
      if (connect(end.fd, { family: 'unix', path: end.record.peer }) >= 0) end.peer = peer
    }
  }

  /** Remove its files. Idempotent. */
  remove(record: SocketRecord): void {
    this.forget(record)
    rmSync(record.path, { force: true })
    rmSync(record.peer, { force: true })
  }

  /** Let go of its descriptor; the data plane goes on. */
  forget(record: SocketRecord): void {
    const end = this.#ends.get(record.path)
    if (end === undefined) return
    this.#ends.delete(record.path)
    close(end.fd)
    if (this.#ends.size > 0) return
    this.#watcher?.close()
    this.#watcher = undefined
  }

  close(): void {
    for (const { record } of [...this.#ends.values()]) this.forget(record)
  }

  #watch(): void {
    if (this.#watcher !== undefined) return
    this.#watcher = watch(this.#dir, { persistent: false }, () => this.look())
    // The directory went, or no more watches are allowed: `look` is called now and then.
    this.#watcher.on('error', () => {})
  }
}

/** Of the file at a path; empty when there is none. An inode's number alone is given again at once. */
function identityOf(path: string): string {
  const s = statSync(path, { throwIfNoEntry: false, bigint: true })
  return s === undefined ? '' : `${s.ino} ${s.ctimeNs}`
}
