/**
 * The lines of a long answer while it is on its way: one moving line on a terminal, plain lines elsewhere.
 * Everything goes to stderr; stdout is for the result.
 */
import type { Progress } from '../client/client.ts'

const FRAMES = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'

export interface ProgressView {
  readonly line: Progress
  /** Clear the moving line. Safe to call twice. */
  end(): void
}

export function progressView(quiet: boolean, out: NodeJS.WriteStream = process.stderr): ProgressView {
  if (quiet) return { line: () => {}, end: () => {} }
  if (!out.isTTY) return { line: (l) => out.write(`  ${l.text}\n`), end: () => {} }
  let text = ''
  let frame = 0
  const paint = (): void => {
    frame = (frame + 1) % FRAMES.length
    out.write(`\r\u001b[2K${FRAMES[frame]} ${text}`)
  }
  const clear = (): void => {
    out.write('\r\u001b[2K')
  }
  const timer = setInterval(() => text !== '' && paint(), 80)
  timer.unref()
  return {
    line(l) {
      if (l.type === 'note') {
        clear()
        out.write(`  ${l.text}\n`)
      } else text = l.text
      if (text !== '') paint()
    },
    end() {
      clearInterval(timer)
      if (text !== '') clear()
      text = ''
    },
  }
}
