/** This machine's side of quickstart's connections: an address VMs can reach, listeners that answer, count or send. */
import { spawn } from 'node:child_process'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { networkInterfaces } from 'node:os'

/**
 * An address of this machine that is neither loopback nor of one link alone: a VM reaches it as it would reach anything outside. Links
 * of noid itself do not count: they are other networks.
 */
export function outsideAddress(family: 'IPv4' | 'IPv6' = 'IPv4', links = networkInterfaces()): string | undefined {
  for (const [name, addresses] of Object.entries(links)) {
    if (/^noid\d+$/.test(name)) continue
    const found = addresses?.find((a) => a.family === family && !a.internal && !a.address.startsWith('fe80'))
    if (found !== undefined) return found.address
  }
  return undefined
}

export interface Listener {
  readonly port: number
  close(): void
}

export function listen(address: string, onConnection: (s: Socket) => void): Promise<Listener> {
  const open = new Set<Socket>()
  const server: Server = createServer((s) => {
    open.add(s)
    s.on('error', () => {})
    s.on('close', () => open.delete(s))
    onConnection(s)
  })
  return new Promise((resolve, reject) => {
    server.on('error', reject)
    server.listen(0, address, () => {
      const at = server.address()
      resolve({
        port: typeof at === 'object' && at !== null ? at.port : 0,
        close: () => {
          server.close()
          for (const s of open) s.destroy()
        },
      })
    })
  })
}

/** An iperf3 server on a free port, when this machine has iperf3. */
export async function iperfServer(address: string): Promise<Listener | undefined> {
  const free = await listen(address, (s) => s.destroy())
  free.close()
  const child = spawn('iperf3', ['-s', '-B', address, '-p', String(free.port), '--forceflush'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  })
  const ready = await new Promise<boolean>((resolve) => {
    child.once('error', () => resolve(false))
    child.once('exit', () => resolve(false))
    child.stdout.once('data', () => resolve(true))
    setTimeout(() => resolve(false), 2000).unref()
  })
  if (!ready) child.kill()
  return ready ? { port: free.port, close: () => child.kill() } : undefined
}

/** Connect, read until the other side closes, at most `timeoutMs`. */
export function fetchText(host: string, port: number, timeoutMs: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = ''
    const s = connect({ host, port, timeout: timeoutMs })
    s.on('data', (c) => (text += c))
    s.on('timeout', () => s.destroy(new Error(`no answer within ${timeoutMs / 1000} s`)))
    s.on('error', reject)
    s.on('close', () => resolve(text))
  })
}

export interface Meter {
  bytes: number
  /** From the first byte to the last. */
  seconds: number
}

/** Count what arrives on a connection. */
export function count(s: Socket, meter: Meter): void {
  let first: number | undefined
  s.on('data', (c) => {
    const now = performance.now()
    first ??= now
    meter.bytes += c.length
    meter.seconds = (now - first) / 1000
  })
}

/** Send for `seconds`, then close; counts what was handed to the kernel. */
export function blast(s: Socket, seconds: number, meter: Meter): void {
  const block = Buffer.alloc(256 * 1024, 'x')
  const start = performance.now()
  const go = (): void => {
    for (;;) {
      meter.seconds = (performance.now() - start) / 1000
      if (meter.seconds >= seconds || s.destroyed) return void s.end()
      meter.bytes += block.length
      if (!s.write(block)) return void s.once('drain', go)
    }
  }
  go()
}

export const gbits = (m: Meter): number => (m.seconds > 0 ? (m.bytes * 8) / m.seconds / 1e9 : 0)
