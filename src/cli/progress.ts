/**
 * The lines of a long answer while it is on its way: one moving line on a terminal, plain lines elsewhere. What is longer than the terminal is wide is
 * cut: a line that wraps cannot be taken back.
 * Everything goes to stderr; stdout is for the result.
 */
import type { Progress } from '../client/client.ts'

const FRAMES = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'

export interface ProgressView {
  readonly line: Progress
  /** Clear the moving line; the next step begins another. Safe to call twice. */
  end(): void
}

export function progressView(quiet: boolean, out: NodeJS.WriteStream = process.stderr): ProgressView {
  if (quiet) return { line: () => {}, end: () => {} }
  if (!out.isTTY || process.env.TERM === 'dumb') return { line: (l) => out.write(`  ${l.text}\n`), end: () => {} }
  let text = ''
  let frame = 0
  let timer: NodeJS.Timeout | undefined
  const paint = (): void => {
    frame = (frame + 1) % FRAMES.length
    const room = (out.columns || 80) - 3
    out.write(`\r\u001b[2K${FRAMES[frame]} ${text.length > room ? `${text.slice(0, room - 1)}…` : text}`)
  }
  const end = (): void => {
    clearInterval(timer)
    if (timer !== undefined) out.write('\r\u001b[2K')
    timer = undefined
  }
  return {
    line(l) {
      if (l.type === 'note') {
        const moving = timer !== undefined
        end()
        out.write(`  ${l.text}\n`)
        if (!moving) return
      } else text = l.text
      timer ??= setInterval(paint, 80)
      paint()
    },
    end,
  }
}
