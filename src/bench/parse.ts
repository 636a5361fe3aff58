/** What iperf3 and dnsperf print, read. Pure; throws with the tool's own words when it failed. */

/** Fields of one TCP run; the built-in client gives the same. */
export interface Transfer {
  readonly bitsPerSecond: number
  readonly bytes: number
  readonly seconds: number
  /** null: not known. */
  readonly retransmits: number | null
}

/** `iperf3 -J` of a TCP test; what the receiver got counts. */
export function parseIperf(text: string): Transfer {
  const r = JSON.parse(text) as {
    error?: string
    end?: {
      sum_received?: { bits_per_second: number; bytes: number; seconds: number }
      sum_sent?: { retransmits?: number }
    }
  }
  if (r.error) throw new Error(`iperf3: ${r.error}`)
  const got = r.end?.sum_received
  if (got === undefined) throw new Error('iperf3 told no result')
  return {
    bitsPerSecond: got.bits_per_second,
    bytes: got.bytes,
    seconds: got.seconds,
    retransmits: r.end?.sum_sent?.retransmits ?? null,
  }
}

export interface Answers {
  readonly perSecond: number
  readonly sent: number
  readonly completed: number
  /** Average, in milliseconds. */
  readonly latencyMs: number
}

export function parseDnsperf(text: string): Answers {
  const number = (label: RegExp): number => {
    const found = label.exec(text)?.[1]
    if (found === undefined) throw new Error(`dnsperf did not tell ${label.source}: ${text.trim().slice(-200)}`)
    return Number(found)
  }
  return {
    perSecond: number(/Queries per second:\s+([\d.]+)/),
    sent: number(/Queries sent:\s+(\d+)/),
    completed: number(/Queries completed:\s+(\d+)/),
    latencyMs: number(/Average Latency \(s\):\s+([\d.]+)/) * 1000,
  }
}
